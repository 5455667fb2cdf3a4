//! Adapters and the opened device.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::Serialize;

use super::autotune::{AutotuneTable, TuneOptions};
use super::commands::{Capabilities, Cooperative, PARAMS_STRIDE};
use super::error::GpuError;
use super::kernel::{Access, Kernel};

/// The description of an adapter, from which a user chooses one.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(target_arch = "wasm32", derive(tsify::Tsify))]
pub struct AdapterSummary {
    /// The index in `loraine info`.
    pub index: usize,
    /// The name that the driver gives.
    pub name: String,
    /// `discrete`, `integrated`, `virtual`, `cpu` or `other`.
    pub kind: &'static str,
    /// Interface to the driver, such as `vulkan` or `metal`.
    pub backend: String,
    /// The driver's name.
    pub driver: String,
    /// The driver's version.
    pub driver_info: String,
    /// The largest range that one binding may cover, in bytes.
    pub max_binding_bytes: u64,
    /// The largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Memory that the invocations of a workgroup share, in bytes.
    pub workgroup_memory_bytes: u32,
    /// The most invocations of a workgroup.
    pub max_invocations: u32,
    /// The smallest and the largest subgroup.
    pub subgroup_sizes: [u32; 2],
    /// True if shaders may compute in f16.
    pub shader_f16: bool,
    /// True if shaders may use subgroup operations.
    pub subgroups: bool,
    /// True if the device can time its own work.
    pub timestamps: bool,
    /// The cooperative matrices; None where the adapter has none that the kernels can use.
    pub cooperative_matrix: Option<Cooperative>,
}

/// The use of cooperative matrices for linear layers, where an adapter has them. Their factors are f16, which moves logits further
/// from the reference than the engine's bounds allow. A run therefore has to ask for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum MatrixUnits {
    /// Products stay in f32.
    #[default]
    Off,
    /// Factors are f16, sums f32.
    On,
}

/// The options for opening a device.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// Part of an adapter's name (any case), or its index in `loraine info`. None takes the most capable.
    pub adapter: Option<String>,
    /// Keeps the driver's bounds and loop checks in shaders. They are off by default outside a browser: every kernel bounds its own
    /// indices.
    pub checked_shaders: bool,
    /// The devices whose kernels are measured before a run, and the place of the measurements.
    pub tuning: TuneOptions,
    /// The use of cooperative matrices.
    pub matrix_units: MatrixUnits,
}

/// The device features that kernels with cooperative matrices need.
const COOPERATIVE_FEATURES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16).union(wgpu::Features::SUBGROUP);

pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub bindings: wgpu::BindGroupLayout,
    /// True once [`Gpu::compile`] has run it.
    pub warm: AtomicBool,
}

/// An opened adapter: compiles kernels, allocates planned memory, runs command lists.
pub struct Gpu {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) uniform_layout: wgpu::BindGroupLayout,
    pub(super) timestamps: bool,
    pub(super) next_list: AtomicU64,
    /// Microseconds spent in submits.
    pub(super) in_submits: AtomicU64,
    /// Multiply-adds per second seen so far; sizes the submits.
    pub(super) rate: AtomicU64,
    /// The adapter that was opened.
    pub adapter: AdapterSummary,
    /// The properties that decide on variants.
    pub capabilities: Capabilities,
    /// The devices whose kernels are measured before a run, and the place of the measurements.
    pub tuning: TuneOptions,
    /// The kernels that were measured or read from the cache so far.
    tuned: Mutex<AutotuneTable>,
    checked_shaders: bool,
    pipelines: Mutex<HashMap<Kernel, Arc<Pipeline>>>,
    failure: Arc<Mutex<Option<String>>>,
    lost: Arc<Mutex<Option<String>>>,
    /// Submits that the device has finished.
    pub(super) finished: Arc<AtomicU64>,
    options: GpuOptions,
}

/// Tells whether a device was lost, also after its [`Gpu`] is gone.
#[derive(Clone, Debug)]
pub struct LossWatch(Arc<Mutex<Option<String>>>);

impl LossWatch {
    /// Returns the driver's reason, or None while the device is there.
    pub fn reason(&self) -> Option<String> {
        locked(&self.0).clone()
    }
}

/// Locks a mutex, poisoned or not: a poisoned lock only says that another thread panicked, and the maps in it stay whole.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends =
        wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12 | wgpu::Backends::BROWSER_WEBGPU;
    wgpu::Instance::new(descriptor)
}

fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
    let info = adapter.get_info();
    let cooperative_matrix = cooperative(adapter, &info);
    let (limits, features) = (adapter.limits(), adapter.features());
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "cpu",
        wgpu::DeviceType::Other => "other",
    };
    AdapterSummary {
        index,
        name: info.name,
        kind,
        backend: info.backend.to_string(),
        driver: info.driver,
        #[cfg(target_arch = "wasm32")]
        driver_info: browser(),
        #[cfg(not(target_arch = "wasm32"))]
        driver_info: info.driver_info,
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_buffer_bytes: limits.max_buffer_size,
        workgroup_memory_bytes: limits.max_compute_workgroup_storage_size,
        max_invocations: limits.max_compute_invocations_per_workgroup,
        subgroup_sizes: [info.subgroup_min_size, info.subgroup_max_size],
        shader_f16: features.contains(wgpu::Features::SHADER_F16),
        subgroups: features.contains(wgpu::Features::SUBGROUP),
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
        cooperative_matrix,
    }
}

/// The browser's own name and version, which stand in for the driver's.
#[cfg(target_arch = "wasm32")]
fn browser() -> String {
    let of = |object: &js_sys::Object, name: &str| js_sys::Reflect::get(object, &name.into()).unwrap_or_default();
    let navigator = js_sys::Object::from(of(&js_sys::global(), "navigator"));
    of(&navigator, "userAgent").as_string().unwrap_or_default()
}

/// The largest square matrices of f16 with sums in f32.
fn cooperative(adapter: &wgpu::Adapter, info: &wgpu::AdapterInfo) -> Option<Cooperative> {
    if !adapter.features().contains(COOPERATIVE_FEATURES) {
        return None;
    }
    let usable = |p: &&wgpu::CooperativeMatrixProperties| {
        (p.ab_type, p.cr_type) == (wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32)
            && (p.m_size, p.n_size) == (p.k_size, p.k_size)
    };
    let side = adapter.cooperative_matrix_properties().iter().filter(usable).map(|p| p.k_size).max()?;
    // wgpu knows no better than 4 to 64 of Metal, whose GPUs with such matrices all run 32 (Metal feature set tables, Apple7 and on).
    let subgroups = match info.backend {
        wgpu::Backend::Metal => [32, 32],
        _ => [info.subgroup_min_size, info.subgroup_max_size],
    };
    Some(Cooperative { side, subgroups })
}

async fn found_adapters() -> Vec<(AdapterSummary, wgpu::Adapter)> {
    let instance = instance();
    let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
    #[cfg(target_arch = "wasm32")]
    let adapters = if adapters.is_empty() {
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        instance.request_adapter(&options).await.into_iter().collect()
    } else {
        adapters
    };
    adapters.into_iter().enumerate().map(|(i, a)| (summary(i, &a), a)).collect()
}

/// Every adapter of this machine, in the order of their indices.
pub async fn adapters() -> Vec<AdapterSummary> {
    found_adapters().await.into_iter().map(|(summary, _)| summary).collect()
}

/// The index of the adapter that is opened when none is named: the first of the most capable kind.
pub fn preferred(adapters: &[AdapterSummary]) -> Option<usize> {
    adapters.iter().min_by_key(|adapter| rank(adapter.kind)).map(|adapter| adapter.index)
}

fn rank(kind: &str) -> u8 {
    match kind {
        "discrete" => 0,
        "integrated" => 1,
        "virtual" => 2,
        "other" => 3,
        _ => 4,
    }
}

impl Capabilities {
    /// The capabilities of a device that [`Gpu::open`] opens on this adapter.
    pub fn of(adapter: &AdapterSummary, matrix_units: MatrixUnits) -> Self {
        Self {
            cpu: adapter.kind == "cpu",
            cooperative: adapter.cooperative_matrix.filter(|_| matrix_units == MatrixUnits::On),
            subgroup_size: match adapter.subgroup_sizes {
                [min, max] if adapter.subgroups && min == max => min,
                _ => 0,
            },
            max_binding_bytes: adapter.max_binding_bytes,
            max_buffer_bytes: adapter.max_buffer_bytes,
            max_workgroups: wgpu::Limits::default().max_compute_workgroups_per_dimension,
        }
    }
}

impl Gpu {
    /// Opens the adapter that `options` name.
    ///
    /// # Errors
    /// No adapter, none that matches, or one whose device cannot be opened with its own limits.
    pub async fn open(options: &GpuOptions) -> Result<Self, GpuError> {
        let mut found = found_adapters().await;
        if found.is_empty() {
            return Err(GpuError::NoAdapter);
        }
        let chosen = match &options.adapter {
            None => preferred(&found.iter().map(|(summary, _)| summary.clone()).collect::<Vec<_>>()),
            Some(wanted) => match wanted.parse::<usize>() {
                Ok(index) => found.iter().position(|(s, _)| s.index == index),
                Err(_) => found.iter().position(|(s, _)| s.name.to_lowercase().contains(&wanted.to_lowercase())),
            },
        };
        let Some(chosen) = chosen else {
            let available: Vec<String> = found.iter().map(|(s, _)| format!("{}: {}", s.index, s.name)).collect();
            let wanted = options.adapter.clone().unwrap_or_default();
            return Err(GpuError::UnknownAdapter { wanted, available: available.join(", ") });
        };
        let (summary, adapter) = found.swap_remove(chosen);

        let adapter_limits = adapter.limits();
        let required_limits = wgpu::Limits {
            max_storage_buffer_binding_size: adapter_limits.max_storage_buffer_binding_size,
            max_buffer_size: adapter_limits.max_buffer_size,
            ..wgpu::Limits::default()
        };
        let timestamps = summary.timestamps;
        let capabilities = Capabilities::of(&summary, options.matrix_units);
        let mut features = adapter.features() & (wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::SUBGROUP);
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if capabilities.cooperative.is_some() {
            features |= COOPERATIVE_FEATURES;
            // SAFETY: wgpu does not check cooperative matrices in full. The tests run each kernel that uses them.
            #[expect(unsafe_code, reason = "wgpu asks for it before it offers an experimental feature")]
            unsafe {
                experimental_features = wgpu::ExperimentalFeatures::enabled();
            }
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("loraine"),
            required_features: features,
            required_limits,
            experimental_features,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| GpuError::Open { adapter: summary.name.clone(), problem: e.to_string() })?;

        let failure = Arc::new(Mutex::new(None));
        let lost = Arc::new(Mutex::new(None));
        let seen = failure.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            locked(&seen).get_or_insert(e.to_string());
        }));
        let seen = lost.clone();
        device.set_device_lost_callback(move |_, message| {
            locked(&seen).get_or_insert(message);
        });
        let uniform_layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("parameters"),
            entries: &[layout_entry(
                0,
                wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Uniform,
                    has_dynamic_offset: true,
                    min_binding_size: None,
                },
            )],
        });
        Ok(Self {
            device,
            queue,
            uniform_layout,
            timestamps,
            next_list: AtomicU64::new(1),
            in_submits: AtomicU64::new(0),
            rate: AtomicU64::new(5_000_000_000),
            adapter: summary,
            capabilities,
            tuning: options.tuning.clone(),
            tuned: Mutex::default(),
            checked_shaders: options.checked_shaders,
            pipelines: Mutex::default(),
            failure,
            lost,
            finished: Arc::default(),
            options: options.clone(),
        })
    }

    /// The options that this device was opened with, to open it again after a loss.
    pub fn options(&self) -> &GpuOptions {
        &self.options
    }

    /// A watch on the loss of this device.
    pub fn loss_watch(&self) -> LossWatch {
        LossWatch(self.lost.clone())
    }

    /// Counts the device as lost from now on, unless it is already.
    pub(super) fn lose(&self, reason: String) -> GpuError {
        GpuError::Lost(locked(&self.lost).get_or_insert(reason).clone())
    }

    /// Reports the first error that the device raised outside a call.
    ///
    /// # Errors
    /// That error.
    pub fn check(&self) -> Result<(), GpuError> {
        if let Some(message) = locked(&self.lost).clone() {
            return Err(GpuError::Lost(message));
        }
        match locked(&self.failure).take() {
            Some(message) => Err(GpuError::Validation(message)),
            None => Ok(()),
        }
    }

    /// The kernels that are known to be the fastest on this device.
    pub fn tuned(&self) -> AutotuneTable {
        locked(&self.tuned).clone()
    }

    /// Replaces the kernels that are known to be the fastest.
    pub fn set_tuned(&self, autotune: AutotuneTable) {
        *locked(&self.tuned) = autotune;
    }

    pub(super) fn next_list_id(&self) -> u64 {
        self.next_list.fetch_add(1, Ordering::Relaxed)
    }

    /// True if [`Gpu::compile`] has run the kernel.
    pub(super) fn is_warm(&self, kernel: &Kernel) -> bool {
        locked(&self.pipelines).get(kernel).is_some_and(|pipeline| pipeline.warm.load(Ordering::Relaxed))
    }

    /// The pipeline of a kernel, compiled at its first use.
    pub(super) fn pipeline(&self, kernel: &Kernel) -> Result<Arc<Pipeline>, GpuError> {
        if let Some(pipeline) = locked(&self.pipelines).get(kernel) {
            return Ok(pipeline.clone());
        }
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(kernel.wgsl().into()),
        };
        let module = if self.checked_shaders {
            self.device.create_shader_module(descriptor)
        } else {
            // SAFETY: every kernel bounds its own indices and loops; the tests run each with these checks too.
            #[expect(unsafe_code, reason = "the driver's bounds checks would slow every kernel down")]
            unsafe {
                self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
            }
        };
        let entries: Vec<_> = kernel
            .accesses()
            .into_iter()
            .enumerate()
            .map(|(i, access)| {
                let ty = wgpu::BufferBindingType::Storage { read_only: access == Access::Read };
                layout_entry(
                    i as u32,
                    wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                )
            })
            .collect();
        let bindings = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(kernel.name), entries: &entries });
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(&bindings), Some(&self.uniform_layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        self.check()?;
        let pipeline = Arc::new(Pipeline { pipeline, bindings, warm: AtomicBool::new(false) });
        locked(&self.pipelines).insert(kernel.clone(), pipeline.clone());
        Ok(pipeline)
    }

    /// The size of each dispatch's uniform binding, the same for all kernels.
    pub(super) fn uniform_size() -> Option<wgpu::BufferSize> {
        wgpu::BufferSize::new(PARAMS_STRIDE)
    }
}

/// Frees the device's memory at once: a browser would wait for its garbage collection.
#[cfg(target_arch = "wasm32")]
impl Drop for Gpu {
    fn drop(&mut self) {
        self.device.destroy();
    }
}

fn layout_entry(binding: u32, ty: wgpu::BindingType) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry { binding, visibility: wgpu::ShaderStages::COMPUTE, ty, count: None }
}
