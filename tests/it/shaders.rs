//! Every kernel's text held to WGSL by naga alone, without a device, and every struct of parameters to the layout of its shader.

use std::collections::BTreeSet;
use std::path::Path;

use loraine::gpu::{Kernel, Layout, Param, ParamType};
use loraine::ops::adamw::{Hyper, State};
use naga::{AddressSpace, ArraySize, Module, ScalarKind, TypeInner};

/// Parts that only the unit tests join, in place of a GPU's matrices.
const PARTS_OF_TESTS: [&str; 1] = ["matrix_emulated.wgsl"];

fn kernels() -> Vec<Kernel> {
    [loraine::ops::kernels(), loraine::bench::kernels()].concat()
}

fn parse(kernel: &Kernel) -> Module {
    let text = kernel.wgsl();
    naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{}:\n{}", kernel.name, e.emit_to_string(&text)))
}

/// The type of the module's uniform binding.
fn uniform(module: &Module) -> &TypeInner {
    let uniforms = module.global_variables.iter().filter(|(_, variable)| variable.space == AddressSpace::Uniform);
    let types: Vec<_> = uniforms.map(|(_, variable)| variable.ty).collect();
    assert_eq!(types.len(), 1, "uniform bindings of a kernel");
    &module.types[types[0]].inner
}

/// The difference between a type on the host and its type in the module, by the path of the field.
fn difference(module: &Module, path: &str, host: ParamType, device: &TypeInner) -> Result<(), String> {
    match (host, device) {
        (ParamType::U32, TypeInner::Scalar(scalar)) if (scalar.kind, scalar.width) == (ScalarKind::Uint, 4) => Ok(()),
        (ParamType::F32, TypeInner::Scalar(scalar)) if (scalar.kind, scalar.width) == (ScalarKind::Float, 4) => Ok(()),
        (ParamType::Struct(layout), TypeInner::Struct { members, span }) => {
            struct_difference(module, path, layout, members, *span)
        }
        (ParamType::Array { of, count }, TypeInner::Array { base, size: ArraySize::Constant(size), stride }) => {
            // A text for fewer terms declares fewer, and reads no others.
            if size.get() as usize > count || *stride as usize != bytes(*of) {
                return Err(format!(
                    "{path} has {size} elements every {stride} bytes, not {count} every {}",
                    bytes(*of)
                ));
            }
            difference(module, &format!("{path}[]"), *of, &module.types[*base].inner)
        }
        _ => Err(format!("{path} is {host:?} on the host and {device:?} in the shader")),
    }
}

fn struct_difference(
    module: &Module,
    path: &str,
    layout: &Layout,
    members: &[naga::StructMember],
    span: u32,
) -> Result<(), String> {
    let fields: Vec<_> = layout.fields.iter().filter(|field| field.name != "padding").collect();
    let members: Vec<_> = members.iter().filter(|member| member.name.as_deref() != Some("padding")).collect();
    let of_host: Vec<_> = fields.iter().map(|field| (field.name, field.offset)).collect();
    let of_device: Vec<_> =
        members.iter().map(|member| (member.name.as_deref().unwrap_or_default(), member.offset as usize)).collect();
    if of_host != of_device {
        return Err(format!("{path} has fields {of_host:?} on the host and {of_device:?} in the shader"));
    }
    for (field, member) in fields.iter().zip(&members) {
        difference(module, &format!("{path}.{}", field.name), field.of, &module.types[member.ty].inner)?;
    }
    let ends_in_array = matches!(fields.last().map(|field| field.of), Some(ParamType::Array { .. }));
    let fits = if ends_in_array { span as usize <= layout.bytes } else { span as usize == layout.bytes };
    if fits { Ok(()) } else { Err(format!("{path} has {} bytes on the host and {span} in the shader", layout.bytes)) }
}

fn bytes(of: ParamType) -> usize {
    match of {
        ParamType::U32 | ParamType::F32 => 4,
        ParamType::Array { of, count } => count * bytes(*of),
        ParamType::Struct(layout) => layout.bytes,
    }
}

/// The difference between parameters of type `P` and the struct `Params` of a text.
fn difference_to<P: Param>(text: &str) -> Result<(), String> {
    let text = format!("{text}\n@group(1) @binding(0) var<uniform> params: Params;");
    let module = naga::front::wgsl::parse_str(&text).expect("valid WGSL");
    difference(&module, "params", P::TYPE, uniform(&module))
}

#[test]
fn every_kernel_variant_is_valid_wgsl() {
    for kernel in kernels() {
        let (text, module) = (kernel.wgsl(), parse(&kernel));
        // unpack2x16float is core WebGPU; naga counts it as a capability for the sake of old GL.
        let mut capabilities = naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        // Subgroups and the extensions that a kernel names are used only where the adapter has them.
        capabilities.set(naga::valid::Capabilities::SUBGROUP, text.contains("subgroupBroadcast"));
        capabilities.set(naga::valid::Capabilities::SHADER_FLOAT16, kernel.enables().contains(&"f16"));
        if kernel.enables().contains(&"wgpu_cooperative_matrix") {
            capabilities.insert(naga::valid::Capabilities::COOPERATIVE_MATRIX | naga::valid::Capabilities::SUBGROUP);
        }
        naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
            .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
            .subgroup_operations(naga::valid::SubgroupOperationSet::all())
            .validate(&module)
            .unwrap_or_else(|e| panic!("{} {kernel:?}:\n{}", kernel.name, e.emit_to_string(&text)));
        assert!(kernel.accesses().len() <= 8, "{} has more storage bindings than the baseline", kernel.name);
    }
}

#[test]
fn every_struct_of_parameters_has_the_layout_of_its_shader() {
    let mut seen = BTreeSet::new();
    for kernel in kernels() {
        // Beside the texts, only the number of terms decides on a layout.
        let terms = kernel.wgsl().lines().find(|line| line.starts_with("const TERMS")).map(str::to_owned);
        if seen.insert((kernel.name, terms)) {
            let module = parse(&kernel);
            if let Err(problem) = difference(&module, "params", kernel.params(), uniform(&module)) {
                panic!("{}: {problem}", kernel.name);
            }
        }
    }
}

#[test]
fn the_optimizer_state_has_the_layout_of_its_shaders() {
    let mut found = BTreeSet::new();
    for kernel in loraine::ops::adamw::kernels() {
        let module = parse(&kernel);
        for (_, of) in module.types.iter() {
            let host = match of.name.as_deref() {
                Some("Hyper") => Hyper::TYPE,
                Some("State") => State::TYPE,
                _ => continue,
            };
            difference(&module, kernel.name, host, &of.inner).unwrap();
            found.insert(of.name.clone());
        }
    }
    assert_eq!(found.len(), 2);
}

#[test]
fn a_swapped_forgotten_or_mistyped_field_is_noticed() {
    #[derive(Clone, Copy)]
    struct Two;
    impl Param for Two {
        const TYPE: ParamType = ParamType::Struct(&Layout {
            fields: &[
                loraine::gpu::Field { name: "rows", offset: 0, of: ParamType::U32 },
                loraine::gpu::Field { name: "scale", offset: 4, of: ParamType::F32 },
            ],
            bytes: 8,
        });
    }
    assert_eq!(difference_to::<Two>("struct Params { rows: u32, scale: f32 }"), Ok(()));
    for (text, word) in [
        ("struct Params { scale: f32, rows: u32 }", "fields"),
        ("struct Params { rows: u32 }", "fields"),
        ("struct Params { rows: u32, scale: f32, more: u32 }", "fields"),
        ("struct Params { rows: u32, @align(16) scale: f32 }", "fields"),
        ("struct Params { rows: f32, scale: f32 }", "params.rows is U32"),
        ("struct Params { rows: u32, @size(12) scale: f32 }", "8 bytes on the host and 16"),
    ] {
        let problem = difference_to::<Two>(text).unwrap_err();
        assert!(problem.contains(word), "{text}: {problem}");
    }
}

#[test]
fn every_shader_is_in_the_list_of_kernels() {
    let texts: BTreeSet<&str> = kernels().iter().flat_map(Kernel::texts).collect();
    for folder in ["shaders", "shaders/lib"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        for entry in std::fs::read_dir(folder).expect("the shaders") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
            if name.ends_with(".wgsl") && !PARTS_OF_TESTS.contains(&name.as_str()) {
                let text = std::fs::read_to_string(&path).expect("a text");
                assert!(texts.contains(text.as_str()), "no kernel of the list is made of {}", path.display());
            }
        }
    }
}
