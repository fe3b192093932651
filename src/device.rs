//! Devices: CPU, CUDA or Metal, and the threads that work on a CPU.

use std::{fmt, str::FromStr};

use candle_core::Device;
use rayon::{ThreadPoolBuildError, ThreadPoolBuilder};
use tracing::warn;

use crate::common::{InvalidValue, error_chain};

/// A device by name: `auto`, `cpu`, `cuda`, `cuda:1` or `metal`. A bare number, as rbee's hive writes it, is a device of the kind that this
/// binary is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first accelerator, if this binary is built for it and the machine has one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU by number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
    /// An accelerator by number, or the CPU in a binary that is built for none.
    Number(usize),
}

/// A device that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("device {choice} is not available: {reason}")]
pub struct DeviceError {
    choice: DeviceChoice,
    reason: String,
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// When this binary is not built for it, or it is not there.
    pub fn open(self) -> Result<Device, DeviceError> {
        let error = |reason: String| DeviceError { choice: self, reason };
        match self {
            Self::Auto => Ok(Self::accelerator().unwrap_or(Device::Cpu)),
            Self::Cuda(_) if !candle_core::utils::cuda_is_available() => {
                Err(error("this binary is built without it; build with --features cuda".to_owned()))
            }
            Self::Metal if !candle_core::utils::metal_is_available() => {
                Err(error("this binary is built without it; build with --features metal".to_owned()))
            }
            Self::Cuda(ordinal) => {
                let advice = "nvidia-smi lists those that are, and --device cpu needs none";
                Device::new_cuda_with_stream(ordinal).map_err(|e| error(format!("{}; {advice}", error_chain(&e))))
            }
            Self::Number(ordinal) if candle_core::utils::cuda_is_available() => Self::Cuda(ordinal).open(),
            Self::Number(_) if candle_core::utils::metal_is_available() => Self::Metal.open(),
            Self::Cpu | Self::Number(_) => Ok(Device::Cpu),
            Self::Metal => Device::new_metal(0).map_err(|e| error(error_chain(&e))),
        }
    }

    fn accelerator() -> Option<Device> {
        let device = if candle_core::utils::cuda_is_available() {
            Device::new_cuda_with_stream(0)
        } else if candle_core::utils::metal_is_available() {
            Device::new_metal(0)
        } else {
            return None;
        };
        device.inspect_err(|error| warn!(error = error_chain(error), "the accelerator cannot be used, so the CPU is")).ok()
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal => f.write_str("metal"),
            Self::Number(ordinal) => write!(f, "{ordinal}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let number = |ordinal: &str| ordinal.parse().ok();
        match text.to_ascii_lowercase().as_str() {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "metal" => Some(Self::Metal),
            "cuda" => Some(Self::Cuda(0)),
            name => match name.strip_prefix("cuda:") {
                Some(ordinal) => number(ordinal).map(Self::Cuda),
                None => number(name).map(Self::Number),
            },
        }
        .ok_or_else(|| InvalidValue::new("device", format_args!("\"{text}\""), "auto, cpu, cuda, cuda:N or metal"))
    }
}

/// The name of an open device, such as `cpu` or `cuda:0`.
#[must_use]
pub fn describe(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".to_owned(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// The most threads for each CPU that the process may use.
const MOST_PER_CPU: usize = 8;

/// Starts the threads that share the work on a CPU: `count` of them, by default one for each CPU that this process may use.
///
/// # Errors
/// When the system refuses threads, or they were started before.
pub fn start_threads(count: Option<usize>) -> Result<(), ThreadPoolBuildError> {
    // 0 leaves the number to rayon: RAYON_NUM_THREADS where it is set, else `std::thread::available_parallelism`, which respects
    // the CPUs that the process is bound to and the quota of its cgroup, as in a container.
    let pool = ThreadPoolBuilder::new().num_threads(count.map_or(0, bounded));
    pool.thread_name(|i| format!("sd-worker-{i}")).build_global()
}

/// `count`, but no more than [`MOST_PER_CPU`] for each CPU: more threads only wait for each other.
fn bounded(count: usize) -> usize {
    let most = MOST_PER_CPU * std::thread::available_parallelism().map_or(1, Into::into);
    if count > most {
        warn!("{count} threads are more than the CPUs of this process can serve; {most} are started");
    }
    count.min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_other_tools_name_them() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("CPU", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
            ("1", DeviceChoice::Number(1)),
            ("metal", DeviceChoice::Metal),
        ] {
            assert_eq!(text.parse(), Ok(choice));
        }
        assert!("tpu".parse::<DeviceChoice>().is_err());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_the_binary_is_not_built_for_says_how_to_get_it() {
        let error = DeviceChoice::Cuda(0).open().unwrap_err().to_string();
        assert!(error.contains("cuda:0 is not available") && error.contains("--features cuda"), "{error}");
    }
}
