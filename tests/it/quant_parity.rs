//! Quantized bytes against bitsandbytes': identical, scales and nested scales included.

use crate::common::{Reference, adapter, fixture, open_engine, shared};
use loraine::gpu::View;
use loraine::model::config::ModelConfig;
use loraine::network::base::BaseStorage;
use loraine::quant::format::{Code4, NESTED_SCALES_AT};
use loraine::quant::{self, Scales};
use loraine::train::engine::Engine;

fn read_bytes(engine: &Engine, view: View) -> Vec<u8> {
    pollster::block_on(engine.gpu.read(&engine.buffers, view)).unwrap()
}

#[test]
fn the_loader_writes_bitsandbytes_bytes_on_the_device() {
    let (Some(model), Some(reference), Some(dir)) = (
        shared("models/stories260K"),
        shared("reference/nf4_stories260K_layer0.safetensors"),
        shared("reference/lora_stories260K_nf4/adapter_init"),
    ) else {
        return;
    };
    let reference = Reference::read(&reference);
    let config = ModelConfig::from_file(&model.join("config.json")).unwrap();
    let (modules, tensors) = adapter(&dir, &config);
    for double in [false, true] {
        let base = BaseStorage::Quantized(Code4::Nf4.storage(double));
        let engine = open_engine(&model, base, &modules, &tensors, 32, 5);
        for projection in config.projections() {
            let key = format!("model.layers.0.{}.weight.dq{}", projection.module(), u8::from(double));
            let weight = engine.plan.shared.network.layers[0].projection(projection);
            let panel = weight.panels[0];
            let packed = reference.bytes(&format!("{key}.packed"));
            assert_eq!(read_bytes(&engine, panel.data)[..packed.len()], packed, "{key}");
            let scales = read_bytes(&engine, panel.absmax.unwrap());
            if double {
                let codes = reference.bytes(&format!("{key}.absmax"));
                assert_eq!(scales[..codes.len()], codes, "{key}");
                let nested: Vec<f32> = bytemuck::pod_collect_to_vec(&read_bytes(&engine, panel.nested.unwrap()));
                let absmax2 = reference.get(&format!("{key}.absmax2"));
                let at = NESTED_SCALES_AT as usize;
                assert_eq!(&nested[..256], reference.get("code2"), "{key}");
                assert_eq!(nested[256], reference.get(&format!("{key}.offset"))[0], "{key}");
                assert_eq!(&nested[at..at + absmax2.len()], absmax2, "{key}");
            } else {
                let absmax = reference.get(&format!("{key}.absmax"));
                let scales: Vec<f32> = bytemuck::pod_collect_to_vec(&scales);
                assert_eq!(&scales[..absmax.len()], absmax, "{key}");
            }
        }
    }
}

#[test]
fn the_host_twin_writes_bitsandbytes_bytes() {
    let reference = Reference::read(&fixture("quant.safetensors"));
    for name in ["matrix", "ragged"] {
        let values = reference.get(&format!("{name}.weight"));
        for (code, label) in [(Code4::Nf4, "nf4"), (Code4::Fp4, "fp4")] {
            for double in [false, true] {
                let key = format!("{name}.{label}{}", if double { "_dq" } else { "" });
                let quantized = quant::quantize(values, code, double);
                assert_eq!(quantized.packed, reference.bytes(&key), "{key}");
                match &quantized.scales {
                    Scales::Plain(absmax) => assert_eq!(absmax, reference.get(&format!("{key}.absmax")), "{key}"),
                    Scales::Nested { codes, absmax, offset } => {
                        assert_eq!(*codes, reference.bytes(&format!("{key}.absmax")), "{key}");
                        assert_eq!(absmax, reference.get(&format!("{key}.nested_absmax")), "{key}");
                        assert_eq!([*offset], reference.get(&format!("{key}.nested_offset")), "{key}");
                    }
                }
                if let Some(values) = reference.find(&format!("{key}.dequantized")) {
                    assert_eq!(quant::dequantize(&quantized, code, values.len()), values, "{key}");
                }
            }
        }
        assert_eq!(quant::dynamic_map()[..], *reference.get("nested_quant_map"));
        assert_eq!(Code4::Nf4.spec().values[..], *reference.get("nf4.quant_map"));
        assert_eq!(Code4::Fp4.spec().values[..], *reference.get("fp4.quant_map"));
    }
}
