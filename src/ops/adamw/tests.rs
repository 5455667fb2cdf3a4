use super::*;
use crate::ops::testing::{Lab, assert_close};

const SETTINGS: AdamW =
    AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, max_norm: 1.0, loraplus_lr_ratio: 1.0 };

/// Five steps of `torch.optim.AdamW` (PyTorch 2.15, f64) after `clip_grad_norm_(1.0)`, with learning rates 0.02 / t:
/// (gradients, norm before clipping, parameters afterwards).
const TORCH_START: [f64; 6] = [0.5, -1.25, 2.0, 0.03125, -0.75, 1.5];
const TORCH: [([f64; 6], f64, [f64; 6]); 5] = [
    (
        [0.1, -0.2, 0.3, 0.0, 2.0, -0.5],
        2.095232683975696,
        [0.479000004190467, -1.227500002095234, 1.976000001396822, 0.0311875, -0.768499999790477, 1.516999999161907],
    ),
    (
        [-0.4, 0.1, 0.25, 1e-4, 1.0, 0.5],
        1.2175795702951,
        [
            0.484908433894568,
            -1.226049035694276,
            1.964095512073732,
            0.023732989652403,
            -0.777667814536129,
            1.512417125585495,
        ],
    ),
    (
        [0.05, 0.05, -0.6, -1e-4, -3.0, 0.25],
        3.070423425197248,
        [
            0.487671531650879,
            -1.225665192270878,
            1.961373722773525,
            0.021724817712883,
            -0.778580254834602,
            1.509127610943941,
        ],
    ),
    (
        [0.2, -0.9, 0.1, 0.0, 0.5, 0.125],
        1.060954758696147,
        [
            0.487641895853679,
            -1.222236313197242,
            1.958731787318188,
            0.02048719399789,
            -0.779861049588091,
            1.506316743665041,
        ],
    ),
    (
        [1.5, 0.3, -0.2, 2e-4, -0.25, -1.0],
        1.855397542307308,
        [
            0.485548705984462,
            -1.220274913194934,
            1.957556372652389,
            0.018274704448334,
            -0.780499952034185,
            1.506380707058394,
        ],
    ),
];
const TORCH_M: [f64; 6] = [
    0.078312294011969,
    -0.059133689754413,
    0.006237518972674,
    0.000014128566922,
    0.072298933166745,
    -0.022418497625094,
];
const TORCH_V: [f64; 6] =
    [0.007959426202597, 0.007541041262947, 0.001184403676978, 0.000000000192041, 0.027034467992699, 0.00529054983936];

#[test]
fn the_twin_is_torchs_adamw() {
    let mut range = twin::Range::new(&TORCH_START);
    let same = |got: &[f64], want: &[f64]| got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-13);
    for (t, (grads, norm, params)) in (1..).zip(TORCH) {
        assert!((twin::norm(&grads) - norm).abs() < 1e-13);
        let clip = twin::clip(&SETTINGS, norm);
        twin::step(&mut range, &grads, clip, &SETTINGS, 0.02 / f64::from(t), t);
        assert!(same(&range.params, &params), "step {t}: {:?}", range.params);
    }
    assert!(same(&range.m, &TORCH_M) && same(&range.v, &TORCH_V));
}

/// The views of one range of `count` elements on the device, and what the steps share.
struct Device {
    params: View,
    m: View,
    v: View,
    partials: View,
    state: View,
}

fn device(lab: &mut Lab, params: &[f64], ranges: &[View]) -> Device {
    let zeros = vec![0.0; params.len()];
    Device {
        params: lab.vector(params),
        m: lab.vector(&zeros),
        v: lab.vector(&zeros),
        partials: lab.vector(&vec![f64::NAN; (partials_bytes(ranges) / 4) as usize]),
        state: lab.vector(&[f64::NAN; 4]),
    }
}

fn hyper(lab: &mut Lab, settings: &AdamW, learning_rate: f64, t: u32) -> View {
    let words: [u32; 8] = bytemuck::cast(settings.hyper(learning_rate, t));
    lab.words(&words)
}

fn state(lab: &Lab, view: View) -> State {
    let values = lab.read_vector(view);
    State { norm: values[0], clip: values[1], finite: values[2], spare: values[3] }
}

#[test]
fn five_steps_on_the_device_are_torchs() {
    let mut lab = Lab::new();
    let grads = TORCH.map(|(grads, _, _)| lab.vector(&[grads.as_slice(), &[0.0; 2]].concat()));
    let on_device = device(&mut lab, &[TORCH_START.as_slice(), &[0.0; 2]].concat(), &grads[..1]);
    let mut rec = lab.recorder();
    for (t, grads) in (1..).zip(grads) {
        let hyper = hyper(&mut lab, &SETTINGS, 0.02 / f64::from(t), t);
        grad_norm(&mut rec, &[grads], hyper, on_device.partials, on_device.state);
        step(&mut rec, on_device.params, grads, on_device.m, on_device.v, on_device.state, hyper);
    }
    lab.run(&rec);
    let (_, norm, params) = TORCH[4];
    assert_close("parameters", &lab.read_vector(on_device.params)[..6], &params, 1e-6);
    assert_close("m", &lab.read_vector(on_device.m)[..6], &TORCH_M, 1e-5);
    assert_close("v", &lab.read_vector(on_device.v)[..6], &TORCH_V, 1e-5);
    let state = state(&lab, on_device.state);
    assert_close("norm and clip", &[state.norm, state.clip], &[norm, 1.0 / (norm + 1e-6)], 1e-6);
    assert_eq!(state.finite, 1.0);
}

#[test]
fn long_ranges_equal_the_twin_with_and_without_clipping() {
    // More workgroups than one dispatch row holds here, and a second range with a partial workgroup.
    for (counts, max_norm) in [([40_000, 4], 0.0), ([4096, 5000], 1e9), ([8, 12_340], 0.5)] {
        let settings = AdamW { max_norm, ..SETTINGS };
        let mut lab = Lab::new();
        lab.capabilities.max_workgroups = 50;
        let values = counts.map(|count| (lab.normal(count), lab.normal(count)));
        let grads = values.clone().map(|(_, grads)| lab.vector(&grads));
        let on_device = values.clone().map(|(params, _)| device(&mut lab, &params, &grads));
        let hyper = hyper(&mut lab, &settings, 0.01, 1);
        let mut rec = lab.recorder();
        let shared = on_device[0].state;
        grad_norm(&mut rec, &grads, hyper, on_device[0].partials, shared);
        for (d, grads) in on_device.iter().zip(grads) {
            step(&mut rec, d.params, grads, d.m, d.v, shared, hyper);
        }
        lab.run(&rec);
        let norm = twin::norm(&values.clone().map(|(_, grads)| grads).concat());
        let clip = twin::clip(&settings, norm);
        let state = state(&lab, shared);
        assert_close("norm", &[state.norm], &[norm], 1e-6);
        assert_close("clip", &[state.clip], &[clip], 1e-6);
        for (d, (params, grads)) in on_device.iter().zip(&values) {
            let mut range = twin::Range::new(params);
            twin::step(&mut range, grads, clip, &settings, 0.01, 1);
            let moved = |after: &[f64]| -> Vec<f64> { after.iter().zip(params).map(|(a, b)| a - b).collect() };
            let got: Vec<f64> = lab.read_vector(d.params).iter().map(|p| f64::from(*p)).collect();
            assert_close("parameters", &lab.read_vector(d.params), &range.params, 1e-6);
            // A difference of neighbors: what f32 parameters keep of the step.
            let got: Vec<f32> = moved(&got).iter().map(|d| *d as f32).collect();
            assert_close("steps", &got, &moved(&range.params), 1e-5);
            assert_close("m", &lab.read_vector(d.m), &range.m, 1e-6);
            assert_close("v", &lab.read_vector(d.v), &range.v, 1e-6);
        }
    }
}

#[test]
fn a_gradient_that_is_not_finite_moves_nothing() {
    for poison in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30] {
        let mut lab = Lab::new();
        let params = lab.normal(5000);
        let mut values = lab.normal(5000);
        values[4321] = poison;
        let grads = lab.vector(&values);
        let on_device = device(&mut lab, &params, &[grads]);
        let hyper = hyper(&mut lab, &SETTINGS, 0.01, 1);
        let mut rec = lab.recorder();
        grad_norm(&mut rec, &[grads], hyper, on_device.partials, on_device.state);
        step(&mut rec, on_device.params, grads, on_device.m, on_device.v, on_device.state, hyper);
        lab.run(&rec);
        let state = state(&lab, on_device.state);
        assert!(state.finite == 0.0 && state.clip == 1.0 && !state.norm.is_finite(), "{state:?}");
        let want: Vec<f32> = params.iter().map(|p| *p as f32).collect();
        assert_eq!(lab.read_vector(on_device.params), want);
        assert_eq!(lab.read_vector(on_device.m), vec![0.0; 5000]);
        assert_eq!(lab.read_vector(on_device.v), vec![0.0; 5000]);
    }
}
