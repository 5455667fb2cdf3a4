//! A Vulkan device on which pipelines are created and never run.
#![expect(unsafe_code, reason = "ash is Vulkan as it is")]

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::CStr;

use ash::khr::pipeline_executable_properties as executables;
use ash::vk;

/// An opened driver. It lives as long as the program.
pub(crate) struct Driver {
    /// The name of the device.
    pub(crate) name: String,
    device: ash::Device,
    executables: executables::Device,
    // Unloads the library when it goes.
    _entry: ash::Entry,
}

/// A driver's report on a pipeline.
pub(crate) struct Compiled {
    /// Its statistics by the driver's names.
    pub(crate) statistics: BTreeMap<String, f64>,
    /// Lanes of a subgroup.
    pub(crate) subgroup_size: u32,
    /// The code for the device; empty where the driver shows none.
    pub(crate) code: String,
}

impl Driver {
    /// Opens the first device that reports on its pipelines.
    pub(crate) fn open() -> Result<Self, Box<dyn Error>> {
        // SAFETY: the loader is the system's, and every handle lives as long as the program.
        unsafe {
            let entry = ash::Entry::load()?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let instance =
                entry.create_instance(&vk::InstanceCreateInfo::default().application_info(&application), None)?;
            let reports = |device: &vk::PhysicalDevice| {
                let extensions = instance.enumerate_device_extension_properties(*device).unwrap_or_default();
                extensions.iter().any(|extension| extension.extension_name_as_c_str() == Ok(executables::NAME))
            };
            let physical = instance
                .enumerate_physical_devices()?
                .into_iter()
                .find(reports)
                .ok_or("no driver here reports on its pipelines")?;
            let properties = instance.get_physical_device_properties(physical);
            let name = properties.device_name_as_c_str()?.to_string_lossy().trim().to_owned();
            let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
            let extensions = [executables::NAME.as_ptr()];
            let mut reports =
                vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
            let mut features = vk::PhysicalDeviceFeatures2::default();
            instance.get_physical_device_features2(physical, &mut features);
            let features = features.features.robust_buffer_access(false);
            let info = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .enabled_extension_names(&extensions)
                .enabled_features(&features)
                .push_next(&mut reports);
            let device = instance.create_device(physical, &info, None)?;
            let executables = executables::Device::new(&instance, &device);
            Ok(Self { name, device, executables, _entry: entry })
        }
    }

    /// Compiles a module whose group 0 has `storages` storage buffers and whose group 1 has the parameters.
    pub(crate) fn compile(&self, spirv: &[u32], storages: u32) -> Result<Compiled, vk::Result> {
        let binding = |number, kind| {
            vk::DescriptorSetLayoutBinding::default()
                .binding(number)
                .descriptor_type(kind)
                .descriptor_count(1)
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
        };
        let storage: Vec<_> = (0..storages).map(|number| binding(number, vk::DescriptorType::STORAGE_BUFFER)).collect();
        let uniform = [binding(0, vk::DescriptorType::UNIFORM_BUFFER_DYNAMIC)];
        // SAFETY: all handles are of this device, and none is used after it is destroyed.
        unsafe {
            let module = self.device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(spirv), None)?;
            let layout = |bindings| {
                self.device.create_descriptor_set_layout(
                    &vk::DescriptorSetLayoutCreateInfo::default().bindings(bindings),
                    None,
                )
            };
            let sets = [layout(&storage)?, layout(&uniform)?];
            let layout = self
                .device
                .create_pipeline_layout(&vk::PipelineLayoutCreateInfo::default().set_layouts(&sets), None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(c"main");
            let info = vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout).flags(
                vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
                    | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR,
            );
            let pipelines = self
                .device
                .create_compute_pipelines(vk::PipelineCache::null(), &[info], None)
                .map_err(|(_, error)| error)?;
            let compiled = self.report(pipelines[0]);
            self.device.destroy_pipeline(pipelines[0], None);
            self.device.destroy_pipeline_layout(layout, None);
            sets.iter().for_each(|set| self.device.destroy_descriptor_set_layout(*set, None));
            self.device.destroy_shader_module(module, None);
            compiled
        }
    }

    fn report(&self, pipeline: vk::Pipeline) -> Result<Compiled, vk::Result> {
        // SAFETY: the pipeline was created with the flags that these calls need.
        unsafe {
            let of = vk::PipelineInfoKHR::default().pipeline(pipeline);
            let programs = self.executables.get_pipeline_executable_properties(&of)?;
            let subgroup_size = programs.first().map_or(0, |program| program.subgroup_size);
            let first = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
            let mut statistics = BTreeMap::new();
            for statistic in self.executables.get_pipeline_executable_statistics(&first)? {
                let value = match statistic.format {
                    vk::PipelineExecutableStatisticFormatKHR::FLOAT64 => statistic.value.f64,
                    vk::PipelineExecutableStatisticFormatKHR::INT64 => statistic.value.i64 as f64,
                    _ => statistic.value.u64 as f64,
                };
                statistics.insert(text(statistic.name_as_c_str().unwrap_or_default()), value);
            }
            Ok(Compiled { statistics, subgroup_size, code: self.code(&first)? })
        }
    }

    /// The last of the driver's texts, which is the closest to the device.
    ///
    /// # Safety
    /// The pipeline keeps its internal representations.
    unsafe fn code(&self, of: &vk::PipelineExecutableInfoKHR) -> Result<String, vk::Result> {
        let get = self.executables.fp().get_pipeline_executable_internal_representations_khr;
        let device = self.executables.device();
        let mut count = 0;
        // SAFETY: the driver writes the number of texts, then their sizes, then the texts into memory of these sizes.
        unsafe {
            get(device, of, &mut count, std::ptr::null_mut()).result()?;
            let mut texts = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
            get(device, of, &mut count, texts.as_mut_ptr()).result()?;
            let mut bytes: Vec<Vec<u8>> = texts.iter().map(|text| vec![0; text.data_size]).collect();
            for (text, bytes) in texts.iter_mut().zip(&mut bytes) {
                text.p_data = bytes.as_mut_ptr().cast();
            }
            get(device, of, &mut count, texts.as_mut_ptr()).result()?;
            Ok(bytes.last().and_then(|bytes| CStr::from_bytes_until_nul(bytes).ok()).map(text).unwrap_or_default())
        }
    }
}

fn text(of: &CStr) -> String {
    of.to_string_lossy().into_owned()
}
