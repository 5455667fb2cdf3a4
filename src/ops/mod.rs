//! One file per operation: its formula, its typed parameters, the functions that check shapes and record dispatches,
//! the CPU twin written from the formula, and the tests that hold the two together.

pub mod adamw;
pub mod adamw8bit;
pub mod add;
pub mod attention;
pub mod bf16;
pub mod column_gradient;
pub mod cross_entropy;
pub mod dropout;
mod elementwise;
pub mod embedding;
pub mod glu;
pub mod kv_cache;
pub(crate) mod lib_parts;
pub mod linear;
pub mod lora_gradient;
pub mod quantize;
pub mod rms_norm;
pub mod rope;
pub mod rows;
#[cfg(test)]
pub(crate) mod testing;
mod variant_family;
pub mod weight;
pub mod weight_gradient;

pub(crate) use variant_family::VariantFamily;

use crate::gpu::Kernel;

/// Every kernel of the crate in every variant, for the tests that validate their texts.
pub fn kernels() -> Vec<Kernel> {
    [
        adamw::kernels(),
        adamw8bit::kernels(),
        add::kernels(),
        attention::kernels(),
        bf16::kernels(),
        column_gradient::kernels(),
        cross_entropy::kernels(),
        dropout::kernels(),
        embedding::kernels(),
        glu::kernels(),
        linear::kernels(),
        lora_gradient::kernels(),
        quantize::kernels(),
        rms_norm::kernels(),
        rope::kernels(),
        rows::kernels(),
        weight_gradient::kernels(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    /// naga alone, without a device: every assembled text is valid WGSL within the WebGPU baseline.
    #[test]
    fn every_kernel_variant_is_valid_wgsl() {
        let kernels = super::kernels();
        for kernel in &kernels {
            let text = kernel.wgsl();
            let module = naga::front::wgsl::parse_str(&text)
                .unwrap_or_else(|e| panic!("{}:\n{}", kernel.name, e.emit_to_string(&text)));
            // unpack2x16float is core WebGPU; naga counts it as a capability for the sake of old GL.
            let mut capabilities = naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32;
            // Chosen only where the adapter has subgroups.
            capabilities.set(naga::valid::Capabilities::SUBGROUP, text.contains("subgroupBroadcast"));
            // So are these, by name.
            let f16 = naga::valid::Capabilities::SHADER_FLOAT16;
            let cooperative = naga::valid::Capabilities::COOPERATIVE_MATRIX | naga::valid::Capabilities::SUBGROUP;
            capabilities.set(f16, kernel.enables().contains(&"f16"));
            capabilities.insert(match kernel.enables().contains(&"wgpu_cooperative_matrix") {
                true => cooperative,
                false => naga::valid::Capabilities::empty(),
            });
            naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
                .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
                .subgroup_operations(naga::valid::SubgroupOperationSet::all())
                .validate(&module)
                .unwrap_or_else(|e| panic!("{} {kernel:?}:\n{}", kernel.name, e.emit_to_string(&text)));
            assert!(kernel.accesses().len() <= 8, "{} has more storage bindings than the baseline", kernel.name);
        }
        assert!(kernels.len() >= 4);
    }
}
