use super::*;
use crate::ops::adamw::{AdamW, State, grad_norm, partials_bytes};
use crate::ops::testing::{Lab, assert_close, families};

const SETTINGS: AdamW =
    AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, max_norm: 1.0, loraplus_lr_ratio: 1.0 };

/// A range on the device, and what its steps need.
struct Device {
    params: View,
    moments: CodedMoments,
    tables: View,
    partials: View,
    state: View,
}

fn device(lab: &mut Lab, start: &twin::Range) -> Device {
    let words = |bytes: &[u8]| -> Vec<u32> {
        bytes.chunks(4).map(|b| b.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))).collect()
    };
    let scales: Vec<f64> =
        start.scales[0].iter().zip(&start.scales[1]).flat_map(|(m, v)| [f64::from(*m), f64::from(*v)]).collect();
    let params = lab.vector(&start.params);
    Device {
        params,
        moments: CodedMoments {
            codes: [lab.words(&words(&start.codes[0])), lab.words(&words(&start.codes[1]))],
            scales: lab.vector(&scales),
        },
        tables: lab.vector(&tables().map(f64::from)),
        partials: lab.vector(&vec![f64::NAN; (partials_bytes(&[params]) / 4) as usize]),
        state: lab.vector(&[f64::NAN; 4]),
    }
}

fn record(rec: &mut Recorder, lab: &mut Lab, on: &Device, grads: View, learning_rate: f64, t: u32) {
    let hyper: [u32; 8] = bytemuck::cast(SETTINGS.hyper(learning_rate, t));
    let hyper = lab.words(&hyper);
    grad_norm(rec, &[grads], hyper, on.partials, on.state);
    step(rec, on.params, grads, on.moments, on.tables, on.state, hyper);
}

fn clip(grads: &[f64]) -> f64 {
    crate::ops::adamw::twin::clip(&SETTINGS, crate::ops::adamw::twin::norm(grads))
}

/// The device's values of a range.
fn read(lab: &Lab, on: &Device, elements: usize) -> twin::Range {
    let codes = on.moments.codes.map(|view| {
        let bytes: Vec<u8> = lab.read_words(view).iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes[..elements].to_vec()
    });
    let scales = lab.read_vector(on.moments.scales);
    let of = |moment: usize| -> Vec<f32> {
        scales.iter().skip(moment).step_by(2).take(elements.div_ceil(256)).copied().collect()
    };
    let params = lab.read_vector(on.params).iter().map(|p| f64::from(*p)).collect();
    twin::Range { params, codes, scales: [of(0), of(1)] }
}

/// Magnitudes over eight decades, a block of zeros, and zeros among the others.
fn gradients(lab: &mut Lab, elements: usize) -> Vec<f64> {
    let values = lab.normal(elements);
    let spread = lab.normal(elements);
    let value = |(i, (g, s)): (usize, (&f64, &f64))| match i {
        256..512 => 0.0,
        _ if i % 37 == 0 => 0.0,
        _ => f64::from((g * 1e-3 * 10f64.powf(1.5 * s)) as f32),
    };
    values.iter().zip(&spread).enumerate().map(value).collect()
}

#[test]
fn the_maps_are_those_of_bitsandbytes() {
    // create_dynamic_map of bitsandbytes 0.50: some values' bits, and the sum of all of them.
    let bits = tables().map(f32::to_bits);
    let at = |map: usize, codes: [usize; 6]| codes.map(|code| bits[256 * map + code]);
    let codes = [0, 1, 127, 129, 200, 254];
    assert_eq!(at(0, codes), [0xbf7e_3333, 0xbf7a_999a, 0, 0x365a_1a94, 0x3e6f_3333, 0x3f7e_3333]);
    assert_eq!(at(1, codes), [0, 0x34ae_7baa, 0x3dd4_0000, 0x3df0_cccd, 0x3f1d_e666, 0x3f7f_199a]);
    let sum = |map: &[u32]| map.iter().fold(0u32, |sum, bits| sum.wrapping_add(*bits));
    assert_eq!([sum(&bits[..256]), sum(&bits[256..512])], [2_730_675_844, 577_220_504]);
    for (moment, code) in ZERO_CODES.into_iter().enumerate() {
        assert_eq!(tables()[256 * moment + usize::from(code)], 0.0);
    }
}

#[test]
fn every_form_makes_the_twins_step() {
    let drawn = |i: u64| 4 * (1 + (crate::random::uniform(7, crate::random::Stream::Split, 0, i) * 900.0) as usize);
    for family in families() {
        for elements in [4, 252, 256, 260, 1020, 4096, 12_340, drawn(0), drawn(1), drawn(2)] {
            let mut lab = Lab::for_family(family);
            // Fewer than the range has blocks: the workgroups are folded.
            lab.capabilities.max_workgroups = 20;
            let params = lab.normal(elements);
            let mut want = twin::Range::new(&params);
            // Two steps by the twin give moments to start from.
            for t in 1..3 {
                let grads = gradients(&mut lab, elements);
                twin::step(&mut want, &grads, clip(&grads), &SETTINGS, 0.01, t);
            }
            want.params.iter_mut().for_each(|p| *p = f64::from(*p as f32));
            let start = want.clone();
            let on = device(&mut lab, &start);
            let grads = gradients(&mut lab, elements);
            let mut rec = lab.recorder();
            let view = lab.vector(&grads);
            record(&mut rec, &mut lab, &on, view, 0.02, 3);
            lab.run(&rec);
            let got = read(&lab, &on, elements);
            twin::step(&mut want, &grads, clip(&grads), &SETTINGS, 0.02, 3);

            let what = format!("{family:?}, {elements} elements");
            let single = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<_>>();
            assert_close(&format!("{what}: parameters"), &single(&got.params), &want.params, 1e-6);
            let moved = |after: &[f64]| -> Vec<f64> { after.iter().zip(&start.params).map(|(a, b)| a - b).collect() };
            assert_close(&format!("{what}: steps"), &single(&moved(&got.params)), &moved(&want.params), 1e-4);
            for moment in [0, 1] {
                let scales: Vec<f64> = want.scales[moment].iter().map(|s| f64::from(*s)).collect();
                assert_close(&format!("{what}: scales {moment}"), &got.scales[moment], &scales, 1e-6);
                // Rounding in f32 may take a value over the bound between two codes: rarely, and to the next code alone.
                let codes = || got.codes[moment].iter().zip(&want.codes[moment]);
                let other = codes().filter(|(a, b)| a != b).count();
                assert!(codes().all(|(a, b)| a.abs_diff(*b) <= 1), "{what}: codes {moment}");
                assert!(other <= elements / 500, "{what}: {other} codes {moment} are others");
            }
        }
    }
}

#[test]
fn the_first_step_starts_from_zeroed_buffers_and_keeps_zeros() {
    for family in families() {
        let mut lab = Lab::for_family(family);
        let params = lab.normal(600);
        let start = twin::Range::new(&params);
        let on = device(&mut lab, &start);
        let mut grads = gradients(&mut lab, 600);
        grads[590..].fill(0.0);
        let mut rec = lab.recorder();
        let view = lab.vector(&grads);
        record(&mut rec, &mut lab, &on, view, 0.01, 1);
        lab.run(&rec);
        let got = read(&lab, &on, 600);
        let mut want = start.clone();
        twin::step(&mut want, &grads, clip(&grads), &SETTINGS, 0.01, 1);
        for moment in [0, 1] {
            let decoded = got.decoded(moment);
            assert!(decoded[256..512].iter().chain(&decoded[590..]).all(|value| *value == 0.0), "{family:?}");
            assert_close("moment", &decoded.iter().map(|v| *v as f32).collect::<Vec<_>>(), &want.decoded(moment), 1e-3);
        }
        let decay = 1.0 - 0.01 * SETTINGS.weight_decay;
        for (after, before) in got.params[256..512].iter().zip(&params[256..512]) {
            assert!((after - before * decay).abs() < 1e-6, "{family:?}: {before} became {after}");
        }
    }
}

/// Beside a gradient a million times its own, an element's second moment is far below the least code; while its first one fades,
/// no step may be longer than the learning rate.
#[test]
fn a_small_elements_step_stays_small() {
    for family in families() {
        let mut lab = Lab::for_family(family);
        let start = twin::Range::new(&[0.0; 256]);
        let on = device(&mut lab, &start);
        let mut rec = lab.recorder();
        let mut grads = vec![0.0; 256];
        for t in 1..=6 {
            grads[0] = 1e-2;
            grads[9] = if t == 1 { 1e-6 } else { 0.0 };
            let view = lab.vector(&grads);
            record(&mut rec, &mut lab, &on, view, 0.01, t);
        }
        lab.run(&rec);
        let moved = lab.read_vector(on.params)[9];
        assert!(moved < 0.0 && moved.abs() <= 6.0 * 0.01, "{family:?}: {moved}");
    }
}

#[test]
fn steps_repeat_bit_by_bit_and_a_gradient_that_is_not_finite_moves_nothing() {
    for family in families() {
        let run = |poison: Option<f64>| {
            let mut lab = Lab::for_family(family);
            let params = lab.normal(5000);
            let on = device(&mut lab, &twin::Range::new(&params));
            let mut rec = lab.recorder();
            for t in 1..=3 {
                let mut grads = gradients(&mut lab, 5000);
                if let Some(poison) = poison.filter(|_| t == 3) {
                    grads[4321] = poison;
                }
                let view = lab.vector(&grads);
                if t < 3 || poison != Some(0.0) {
                    record(&mut rec, &mut lab, &on, view, 0.01, t);
                }
            }
            lab.run(&rec);
            let state: [f32; 4] = lab.read_vector(on.state)[..4].try_into().expect("four words");
            let state: State = bytemuck::cast(state);
            let got = read(&lab, &on, 5000);
            (got.params, got.codes, got.scales, state.finite)
        };
        let whole = run(None);
        assert_eq!(whole, run(None), "{family:?}");
        // Two steps alone, against a third that is broken.
        let (params, codes, scales, _) = run(Some(0.0));
        for poison in [f64::NAN, f64::INFINITY, 1e30] {
            assert_eq!(run(Some(poison)), (params.clone(), codes.clone(), scales.clone(), 0.0), "{family:?}");
        }
        assert_ne!(whole.1, codes);
    }
}
