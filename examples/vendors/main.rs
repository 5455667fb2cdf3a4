//! Compiles the kernels of training steps with the Vulkan driver of the environment and prints what its compiler reports: registers,
//! spills, occupancy, its estimate of cycles, and the innermost loop with the most multiply-adds. No kernel runs: Mesa's drivers
//! compile for GPUs that are not there. `scripts/vendors` finds the drivers; docs/testing.md explains the table.
//!
//! `cargo run --example vendors -- [--check] [--all] [--code] [NAME]`

mod driver;
mod loops;
mod steps;

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;

use driver::Driver;
use loops::Loop;
use loraine::gpu::Kernel;

/// Groups of threads that a SIMD of an AMD GPU has to hold at least, so that some compute while others wait for memory.
const LEAST_WAVES: u64 = 4;

struct Arguments {
    /// Fails where a kernel spills or leaves too few waves.
    check: bool,
    /// Every kernel for GPUs, not only those that steps use.
    all: bool,
    /// Prints the compiled code too.
    code: bool,
    /// Only the kernels whose name contains this.
    name: String,
}

/// A driver's statistics of one pipeline, in the words of this program.
struct Row {
    registers: Option<u64>,
    spills: u64,
    /// Waves a SIMD, or the SIMD width on Intel.
    waves: String,
    few_waves: bool,
    cycles: Option<u64>,
    innermost: Option<Loop>,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vendors: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, Box<dyn Error>> {
    let mut arguments = Arguments { check: false, all: false, code: false, name: String::new() };
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--check" => arguments.check = true,
            "--all" => arguments.all = true,
            "--code" => arguments.code = true,
            flag if flag.starts_with('-') => return Err(format!("unknown flag {flag}").into()),
            name => arguments.name = name.to_owned(),
        }
    }
    let driver = Driver::open()?;
    let mut kernels = if arguments.all { steps::all_for_gpus() } else { steps::kernels()? };
    kernels.retain(|kernel| kernel.name.contains(&arguments.name));
    println!("{}, {} kernels", driver.name, kernels.len());
    println!(
        "{:24} {:>5} {:>6} {:>6} {:>9} {:>5} {:>5} {:>5}  variant",
        "kernel", "regs", "spills", "waves", "cycles", "loop", "fma", "share"
    );
    let mut refused = Vec::new();
    for kernel in &kernels {
        let spirv = spirv(kernel)?;
        let compiled =
            driver.compile(&spirv, kernel.accesses().len() as u32).map_err(|e| format!("{}: {e}", kernel.name))?;
        let row = Row::of(&compiled.statistics, compiled.subgroup_size, loops::innermost(&compiled.code));
        print_row(kernel, &row);
        if arguments.code {
            println!("{}", compiled.code);
        }
        if row.spills > 0 || row.few_waves {
            refused.push(kernel.name);
        }
    }
    if refused.is_empty() {
        return Ok(true);
    }
    println!("{}: these spill or leave fewer than {LEAST_WAVES} waves: {}", driver.name, refused.join(", "));
    Ok(!arguments.check)
}

impl Row {
    /// Reads the statistics of RADV, NVK or ANV.
    fn of(statistics: &BTreeMap<String, f64>, subgroup_size: u32, innermost: Option<Loop>) -> Self {
        let value = |name: &str| statistics.get(name).map(|value| *value as u64);
        let sum = |names: &[&str]| names.iter().filter_map(|name| value(name)).sum();
        let spills =
            sum(&["Spilled SGPRs", "Spilled VGPRs", "Scratch size", "SLM Size", "Spill Count", "Scratch Memory Size"]);
        let registers = ["VGPRs", "Number of GPRs", "Max live registers"].iter().find_map(|name| value(name));
        let waves = value("Subgroups per SIMD");
        // A scheduler of an NVIDIA GPU has 512 registers a lane, dealt out by eights, and room for 12 warps.
        let warps = value("Number of GPRs").map(|registers| (512 / registers.next_multiple_of(8).max(8)).min(12));
        let shown = waves.or(warps).map_or_else(|| format!("SIMD{subgroup_size}"), |waves| waves.to_string());
        let few_waves = waves.is_some_and(|waves| waves < LEAST_WAVES);
        let cycles = value("Inverse Throughput").or_else(|| value("Cycle Count"));
        Self { registers, spills, waves: shown, few_waves, cycles, innermost }
    }
}

fn print_row(kernel: &Kernel, row: &Row) {
    let or_dash = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
    let Row { registers, spills, waves, cycles, innermost, .. } = row;
    let [instructions, multiply_adds, share] = match innermost {
        Some(Loop { instructions, multiply_adds }) => [
            instructions.to_string(),
            multiply_adds.to_string(),
            format!("{:.0}%", 100.0 * *multiply_adds as f64 / (*instructions).max(1) as f64),
        ],
        None => ["-"; 3].map(str::to_owned),
    };
    println!(
        "{:24} {:>5} {spills:>6} {waves:>6} {:>9} {instructions:>5} {multiply_adds:>5} {share:>5}  {}",
        kernel.name,
        or_dash(*registers),
        or_dash(*cycles),
        variant(kernel)
    );
}

/// The constants at the head of the text, as `NAME=VALUE`.
fn variant(kernel: &Kernel) -> String {
    let text = kernel.wgsl();
    let constants = text.lines().skip_while(|line| line.starts_with("enable ")).map_while(|line| {
        let (name, value) = line.strip_prefix("const ")?.split_once(": ")?;
        let value = value.split_once(" = ")?.1.trim_end_matches([';', 'u']);
        Some(format!("{name}={value}"))
    });
    constants.collect::<Vec<_>>().join(" ")
}

/// The module that wgpu gives to a driver for a trusted text.
fn spirv(kernel: &Kernel) -> Result<Vec<u32>, Box<dyn Error>> {
    use naga::back::spv;
    use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    let text = kernel.wgsl();
    let module = naga::front::wgsl::parse_str(&text).map_err(|e| e.emit_to_string(&text))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .map_err(|e| e.emit_to_string(&text))?;
    let unchecked = BoundsCheckPolicy::Unchecked;
    let options = spv::Options {
        lang_version: (1, 3),
        flags: spv::WriterFlags::empty(),
        bounds_check_policies: BoundsCheckPolicies {
            index: unchecked,
            buffer: unchecked,
            image_load: unchecked,
            binding_array: unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        ray_query_initialization_tracking: false,
        ..spv::Options::default()
    };
    Ok(spv::write_vec(&module, &info, &options, None)?)
}
