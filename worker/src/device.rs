//! Device names: "cpu:2" is two trainers on the CPU, "cuda:all" one on each GPU.

use crate::{Error, Result};
use std::fmt;

/// The device of one trainer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The n-th trainer that shares this machine's cores.
    Cpu(usize),
    /// A GPU.
    Cuda(usize),
}

impl Device {
    /// One trainer's device, "cpu:0" or "cuda:3".
    pub fn parse(text: &str) -> Result<Self> {
        let (kind, index) = text.split_once(':').unwrap_or((text, "0"));
        match (kind, index.parse()) {
            ("cpu", Ok(i)) => Ok(Device::Cpu(i)),
            ("cuda", Ok(i)) => Ok(Device::Cuda(i)),
            _ => Err(bad(text)),
        }
    }

    /// As libtorch names it.
    pub fn torch(self) -> tch::Device {
        match self {
            Device::Cpu(_) => tch::Device::Cpu,
            Device::Cuda(i) => tch::Device::Cuda(i),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Device::Cpu(i) => write!(f, "cpu:{i}"),
            Device::Cuda(i) => write!(f, "cuda:{i}"),
        }
    }
}

/// The devices of one node: "cpu" or "cpu:2" (a count), "cuda:all", "cuda:0,2" (indices).
/// `gpus` counts the GPUs that are there.
pub fn parse_devices(text: &str, gpus: impl FnOnce() -> usize) -> Result<Vec<Device>> {
    let devices: Vec<Device> = match text.split_once(':') {
        None if text == "cpu" => vec![Device::Cpu(0)],
        Some(("cpu", n)) => (0..n.parse().map_err(|_| bad(text))?).map(Device::Cpu).collect(),
        Some(("cuda", "all")) => {
            let n = gpus();
            if n == 0 {
                return Err(Error::Usage(
                    "use cuda:all: no GPU is visible to libtorch; install the CUDA set (make setup on a host with a driver) or use --devices cpu:N".into(),
                ));
            }
            (0..n).map(Device::Cuda).collect()
        }
        Some(("cuda", list)) => list
            .split(',')
            .map(|i| i.trim().parse().map(Device::Cuda).map_err(|_| bad(text)))
            .collect::<Result<_>>()?,
        _ => return Err(bad(text)),
    };
    if devices.is_empty() { Err(bad(text)) } else { Ok(devices) }
}

fn bad(text: &str) -> Error {
    Error::Usage(format!("understand the devices {text:?}: write cpu:N, cuda:all or cuda:0,1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_counted_or_named() {
        let parse = |t| parse_devices(t, || 2);
        assert_eq!(parse("cpu:2").unwrap(), [Device::Cpu(0), Device::Cpu(1)]);
        assert_eq!(parse("cuda:all").unwrap(), [Device::Cuda(0), Device::Cuda(1)]);
        assert_eq!(parse("cuda:3,5").unwrap(), [Device::Cuda(3), Device::Cuda(5)]);
        for wrong in ["cpu:0", "cpu:x", "tpu", "cuda:", "cuda:a"] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
        assert!(parse_devices("cuda:all", || 0).unwrap_err().to_string().contains("no GPU"));
    }
}
