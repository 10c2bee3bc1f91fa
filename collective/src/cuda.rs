//! Finding and loading the NCCL half, `libmarey_nccl.so`, and with it libtorch's CUDA half.

use crate::{Error, Result, ffi::shim};
use std::{path::PathBuf, sync::OnceLock};

/// Loads the NCCL half and returns how many GPUs there are, at least one. Call it before anything
/// asks tch about CUDA: libtorch looks for its CUDA half once. Later calls repeat the first answer.
///
/// It is looked for at MAREY_NCCL_PLUGIN, else beside the program, else where the build left it.
pub fn load_cuda() -> Result<usize> {
    static ONCE: OnceLock<Result<usize>> = OnceLock::new();
    ONCE.get_or_init(load).clone()
}

fn failed(why: impl Into<String>) -> Error {
    Error::Cuda { doing: "use CUDA".into(), why: format!("{}; or use cpu devices", why.into()) }
}

fn load() -> Result<usize> {
    if !cfg!(feature = "cuda") {
        return Err(failed("this program was built without NCCL; build it with `--features cuda`"));
    }
    let path = find()?;
    shim::load_plugin(&path.to_string_lossy()).map_err(|e| {
        failed(format!(
            "{}; this host needs the CUDA set of libtorch (MAREY_TORCH=cuda scripts/setup.sh) and an NVIDIA driver",
            e.what().lines().next().unwrap_or_default()
        ))
    })?;
    match tch::Cuda::device_count() {
        n if n > 0 => Ok(n as usize),
        _ => Err(failed("no GPU is visible; look at nvidia-smi and CUDA_VISIBLE_DEVICES")),
    }
}

fn find() -> Result<PathBuf> {
    let candidates: Vec<PathBuf> = match std::env::var_os("MAREY_NCCL_PLUGIN") {
        Some(path) => vec![path.into()],
        None => {
            let beside =
                std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("libmarey_nccl.so")));
            beside.into_iter().chain(option_env!("MAREY_NCCL_BUILT").map(PathBuf::from)).collect()
        }
    };
    candidates.iter().find(|p| p.is_file()).cloned().ok_or_else(|| {
        let places: Vec<String> = candidates.iter().map(|p| p.display().to_string()).collect();
        failed(format!("libmarey_nccl.so is not at {}; set MAREY_NCCL_PLUGIN to it", places.join(" nor at ")))
    })
}
