use super::twin::{self, Layer};
use super::*;
use crate::gpu::View;
use crate::ops::testing::{Lab, assert_close, assert_gradient};
use crate::quant::format::{Code4, Float, Storage};

fn choice(experts: u32, top: u32, normalized: bool) -> Choice {
    Choice { experts, top, scores: Scores::Softmax, normalized, scale: 1.0 }
}

/// Every kind of router: the scores, whether they are divided by their sum, and whether the choice has a bias.
fn routers(experts: u32, top: u32) -> Vec<(Choice, bool)> {
    let mut all = Vec::new();
    for (scores, scale) in [(Scores::Softmax, 1.0), (Scores::Sigmoid, 2.5)] {
        for normalized in [false, true] {
            for biased in [false, true] {
                all.push((Choice { scores, scale, ..choice(experts, top, normalized) }, biased));
            }
        }
    }
    all
}

struct Case {
    choice: Choice,
    /// True if the choice of experts has a bias.
    biased: bool,
    /// True for experts with biases and bounded inputs of their activation.
    clamped: bool,
    storage: Storage,
    rows: usize,
    hidden: usize,
    inner: usize,
    /// Bytes of a binding; 0 for the device's own limit.
    binding: u64,
}

/// Forward and backward pass of a layer against the twin.
fn check(cpu: bool, case: &Case) -> Vec<u32> {
    let Case { choice, biased, clamped, storage, rows, hidden, inner, binding } = *case;
    let what =
        format!("cpu {cpu}, {choice:?}, bias {biased}, clamped {clamped}, {storage:?}, {rows} x {hidden} x {inner}");
    let mut lab = Lab::for_cpu(cpu);
    if binding > 0 {
        lab.capabilities.max_binding_bytes = binding;
    }
    let (experts, of) = (choice.experts as usize, (choice, rows as u32));
    let (gate, gate_values) = lab.expert_weights(storage, experts, [inner, hidden]);
    let (up, up_values) = lab.expert_weights(storage, experts, [inner, hidden]);
    let (down, down_values) = lab.expert_weights(storage, experts, [hidden, inner]);
    let values = gate_values.into_iter().zip(up_values).zip(down_values).map(|((g, u), d)| [g, u, d]).collect();
    let bias = if biased { lab.normal(experts) } else { Vec::new() };
    let sizes = if clamped { [inner, inner, hidden] } else { [0; 3] };
    let biases = sizes.map(|outputs| lab.normal(experts * outputs));
    let device_biases: [Option<View>; 3] =
        std::array::from_fn(|i| (!biases[i].is_empty()).then(|| lab.vector(&biases[i])));
    let activation = if clamped { Activation::Clamped } else { Activation::Silu };
    let layer = Layer { choice, bias: bias.clone(), biases, activation, hidden, weights: values };
    let (x, mut logits, dy) = (lab.normal(rows * hidden), lab.normal(rows * experts), lab.normal(rows * hidden));
    // Nobody chooses expert 0, as long as there are others.
    if choice.experts > choice.top {
        logits.iter_mut().step_by(experts).for_each(|z| *z -= 20.0);
    }
    let device_bias = biased.then(|| lab.vector(&bias));
    let (gx, glogits, gdy) =
        (lab.matrix(rows, hidden, &x), lab.matrix(rows, experts, &logits), lab.matrix(rows, hidden, &dy));
    let words = Tables::bytes(choice, rows as u32).map(|bytes| vec![7; bytes as usize / 4]);
    let [chosen, pair_weights, slots, pairs, tiles] = words.map(|words| lab.words(&words));
    let tables = Tables { chosen, weights: pair_weights, slots, pairs, tiles };
    let counts = lab.words(&vec![7; choice.count_bytes() as usize / 4]);
    let shares = lab.vector(&vec![0.0; rows * choice.top as usize]);
    let slots = choice.slots(rows as u32) as usize;
    let [dgate, dup, act] = [(); 3].map(|()| lab.empty(slots, inner));
    let (y, dx) = (lab.empty(rows, hidden), lab.empty(rows, hidden));
    let first = hidden / 8 * 4;
    let parts = [(0, first), (first, hidden - first)].map(|(first, cols)| (first as u32, lab.empty(slots, cols)));
    let parts = parts.into_iter().filter(|(_, part)| part.cols > 0).collect::<Vec<_>>();
    let mut rec = lab.recorder();
    route(&mut rec, glogits, choice, device_bias, &tables);
    sort(&mut rec, rows as u32, choice, &tables, counts);
    forward(&mut rec, (Source::Rows, gx), (&gate, device_biases[0]), of, &tables, (dgate, 0));
    forward(&mut rec, (Source::Rows, gx), (&up, device_biases[1]), of, &tables, (dup, 0));
    crate::ops::glu::forward(&mut rec, activation, dgate, dup, act);
    // In two parts, as where all columns would not fit one binding.
    for (first, part) in parts.iter().copied() {
        forward(&mut rec, (Source::Slots, act), (&down, device_biases[2]), of, &tables, (part, first));
        combine(&mut rec, part, choice, &tables, true, (y, first));
    }
    input_gradient(&mut rec, (Source::Rows, gdy), &down, of, &tables, (act, 0), false);
    glu_backward(&mut rec, activation, [dgate, dup, act], of, &tables, shares);
    if let Some(biases) = device_biases[2] {
        bias_shares(&mut rec, gdy, biases, choice, &tables, shares);
    }
    for (first, part) in parts.iter().copied() {
        input_gradient(&mut rec, (Source::Slots, dgate), &gate, of, &tables, (part, first), false);
        input_gradient(&mut rec, (Source::Slots, dup), &up, of, &tables, (part, first), true);
        combine(&mut rec, part, choice, &tables, false, (dx, first));
    }
    route_backward(&mut rec, glogits, choice, &tables, shares);
    lab.run(&rec);
    let (want_chosen, want_weights) = twin::choose(&twin::scores(&logits, choice), choice, &bias);
    let chosen: Vec<usize> = lab.read_words(tables.chosen).into_iter().map(|e| e as usize).collect();
    assert_eq!(chosen[..want_chosen.len()], want_chosen, "{what}: chosen");
    assert_close(
        &format!("{what}: weights"),
        &lab.read_vector(pair_weights)[..want_weights.len()],
        &want_weights,
        1e-6,
    );
    assert_close(&format!("{what}: y"), &lab.read(y), &layer.forward(&x, &logits), 1e-5);
    let (want_dx, want_dlogits) = layer.backward(&x, &logits, &dy);
    assert_close(&format!("{what}: dx"), &lab.read(dx), &want_dx, 1e-5);
    assert_close(&format!("{what}: dlogits"), &lab.read(glogits), &want_dlogits, 1e-5);
    lab.read(y).into_iter().chain(lab.read(dx)).map(f32::to_bits).collect()
}

const F32: Storage = Storage::Float(Float::F32);

#[test]
fn layers_of_all_sizes_equal_the_twin() {
    for (experts, top, normalized, rows, hidden, inner) in [
        (1, 1, true, 1, 4, 4),
        (5, 2, true, 3, 12, 20),
        (7, 3, false, 1, 33, 9),
        (6, 6, false, 11, 16, 7),
        (70, 2, true, 90, 68, 12),
        (16, 4, true, 61, 36, 101),
    ] {
        let choice = choice(experts, top, normalized);
        let case = Case { choice, biased: false, clamped: false, storage: F32, rows, hidden, inner, binding: 0 };
        let bits = [false, true].map(|cpu| check(cpu, &case));
        assert_eq!(bits[0], bits[1], "{choice:?}: bits of both forms");
    }
}

#[test]
fn every_router_equals_the_twin() {
    for (choice, biased) in routers(11, 3) {
        let case = Case { choice, biased, clamped: false, storage: F32, rows: 29, hidden: 20, inner: 13, binding: 0 };
        let bits = [false, true].map(|cpu| check(cpu, &case));
        assert_eq!(bits[0], bits[1], "{choice:?}: bits of both forms");
    }
}

/// The experts of gpt-oss: biases of all products, and an activation of bounded inputs.
#[test]
fn experts_with_biases_equal_the_twin() {
    for (experts, top, rows, hidden, inner, binding) in
        [(1, 1, 1, 4, 4, 0), (7, 3, 1, 33, 9, 0), (16, 4, 61, 36, 101, 0), (9, 2, 21, 64, 32, 3 * 4 * 64 * 64)]
    {
        let choice = choice(experts, top, true);
        let case = Case { choice, biased: false, clamped: true, storage: F32, rows, hidden, inner, binding };
        let bits = [false, true].map(|cpu| check(cpu, &case));
        assert_eq!(bits[0], bits[1], "{choice:?}: bits of both forms");
    }
}

#[test]
fn every_storage_and_several_bindings_equal_the_twin() {
    let float = |float| Storage::Float(float);
    for storage in [float(Float::F16), float(Float::Bf16), Code4::Nf4.storage(false), Code4::Nf4.storage(true)] {
        for (hidden, inner) in [(64, 32), (36, 10)] {
            let choice = choice(9, 2, true);
            let case =
                |binding| Case { choice, biased: false, clamped: false, storage, rows: 21, hidden, inner, binding };
            let whole = check(true, &case(0));
            assert_eq!(
                whole,
                check(true, &case(3 * storage.bytes(64 * 64).0)),
                "{storage:?}: bits over several bindings"
            );
        }
    }
}

#[test]
fn the_bits_of_a_row_do_not_depend_on_the_others() {
    let mut bits = Vec::new();
    for rows in [1, 2, 40] {
        let choice = choice(8, 3, true);
        let mut lab = Lab::for_cpu(true);
        let (weights, _) = lab.expert_weights(F32, 8, [20, 24]);
        let x = lab.normal(40 * 24);
        let logits = lab.normal(40 * 8);
        let (x, logits) = (lab.matrix(rows, 24, &x[..rows * 24]), lab.matrix(rows, 8, &logits[..rows * 8]));
        let [chosen, pair_weights, slots, pairs, tiles] =
            Tables::bytes(choice, rows as u32).map(|bytes| lab.words(&vec![0; bytes as usize / 4]));
        let tables = Tables { chosen, weights: pair_weights, slots, pairs, tiles };
        let counts = lab.words(&vec![0; choice.count_bytes() as usize / 4]);
        let (out, y) = (lab.empty(choice.slots(rows as u32) as usize, 20), lab.empty(rows, 20));
        let mut rec = lab.recorder();
        route(&mut rec, logits, choice, None, &tables);
        sort(&mut rec, rows as u32, choice, &tables, counts);
        forward(&mut rec, (Source::Rows, x), (&weights, None), (choice, rows as u32), &tables, (out, 0));
        combine(&mut rec, out, choice, &tables, true, (y, 0));
        lab.run(&rec);
        bits.push(lab.read(y)[..20].iter().map(|v| v.to_bits()).collect::<Vec<_>>());
    }
    assert!(bits.iter().all(|of| *of == bits[0]));
}

#[test]
fn equal_probabilities_take_the_first_experts() {
    let choice = choice(5, 3, true);
    let mut lab = Lab::new();
    let logits = lab.matrix(2, 5, &[1.0, 2.0, 2.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let [chosen, weights, slots, pairs, tiles] =
        Tables::bytes(choice, 2).map(|bytes| lab.words(&vec![0; bytes as usize / 4]));
    let tables = Tables { chosen, weights, slots, pairs, tiles };
    let mut rec = lab.recorder();
    route(&mut rec, logits, choice, None, &tables);
    lab.run(&rec);
    assert_eq!(lab.read_words(chosen)[..6], [1, 2, 4, 0, 1, 2]);
}

#[test]
fn the_twins_gradients_are_the_slopes_of_its_forward() {
    let with_biases = (choice(4, 2, true), false, true);
    let plain = routers(4, 2).into_iter().map(|(choice, biased)| (choice, biased, false));
    for (choice, biased, clamped) in plain.chain([with_biases]) {
        let mut lab = Lab::new();
        let (rows, hidden, inner, experts) = (2, 3, 4, 4);
        let mut draw = |count: usize| lab.normal(count);
        let weights =
            (0..experts).map(|_| [draw(inner * hidden), draw(inner * hidden), draw(hidden * inner)]).collect();
        let bias = if biased { draw(experts) } else { Vec::new() };
        let sizes = if clamped { [inner, inner, hidden] } else { [0; 3] };
        let biases = sizes.map(|outputs| draw(experts * outputs));
        let activation = if clamped { Activation::Clamped } else { Activation::Silu };
        let layer = Layer { choice, bias, biases, activation, hidden, weights };
        let (x, logits, dy) = (draw(rows * hidden), draw(rows * experts), draw(rows * hidden));
        let (dx, dlogits) = layer.backward(&x, &logits, &dy);
        let objective = |y: Vec<f64>| y.iter().zip(&dy).map(|(y, d)| y * d).sum();
        assert_gradient(&x, &dx, |x| objective(layer.forward(x, &logits)));
        assert_gradient(&logits, &dlogits, |logits| objective(layer.forward(&x, logits)));
    }
}
