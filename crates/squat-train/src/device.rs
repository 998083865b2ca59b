//! Where tensors live.

use crate::error::TrainError;
use burn::tensor::Device;

/// Names that [`device`] knows.
pub const NAMES: [&str; 5] = ["cpu", "cuda", "vulkan", "metal", "wgpu"];

/// The device of that name: `cpu` always, the others where the program was built with the feature of their name.
///
/// # Errors
/// An unknown name, with the nearest; a device that this build does not have.
pub fn device(name: &str) -> Result<Device, TrainError> {
    nth(name, 0)
}

/// The same, and of several GPUs the one of that number where the name knows numbers (`cuda`).
///
/// # Errors
/// As [`device`].
pub fn nth(name: &str, number: usize) -> Result<Device, TrainError> {
    // Without a GPU feature nothing has a number.
    let _ = number;
    match name {
        "cpu" => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(number)),
        #[cfg(feature = "vulkan")]
        "vulkan" => Ok(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "metal")]
        "metal" => Ok(Device::metal(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "wgpu")]
        "wgpu" => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        name if NAMES.contains(&name) => Err(TrainError::Input(format!(
            "this program was built without {name}; build it with --features {name}, or use --device cpu"
        ))),
        name => {
            let near = squat_quant::spelling::nearest(name, NAMES).unwrap_or("cpu");
            Err(TrainError::Input(format!(
                "no device `{name}`; did you mean `{near}`? Known: {}",
                NAMES.join(", ")
            )))
        }
    }
}

/// Whether tensors of this device lie in the CPU's memory, where the fused operations run.
pub fn is_cpu(device: &Device) -> bool {
    *device == Device::flex()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_devices_or_to_advice() {
        assert!(is_cpu(&device("cpu").unwrap()));
        assert!(device("cdua").unwrap_err().to_string().contains("did you mean `cuda`"));
        #[cfg(not(feature = "cuda"))]
        assert!(device("cuda").unwrap_err().to_string().contains("--features cuda"));
    }
}
