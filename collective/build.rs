//! Compiles the C++ shim against libtorch's headers and, with feature `cuda`, the NCCL half as a
//! shared object of its own, so that one program serves hosts with and without a GPU.

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
    process::Command,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SOURCES: [&str; 5] =
    ["cpp/store.cpp", "cpp/group.cpp", "cpp/reducer.cpp", "cpp/runtime.cpp", "cpp/autograd.cpp"];

fn main() -> Result<()> {
    for path in ["build.rs", "src/ffi.rs", "cpp"] {
        println!("cargo:rerun-if-changed={path}");
    }
    // torch-sys (links = "tch") tells its direct dependents where it found libtorch.
    let lib = PathBuf::from(
        env::var("DEP_TCH_LIBTORCH_LIB").map_err(|_| "torch-sys named no libtorch; set LIBTORCH")?,
    );
    let torch = lib.parent().ok_or("libtorch lies in no folder")?.to_path_buf();

    let mut shim = cxx_build::bridge("src/ffi.rs");
    shim.files(SOURCES).include("cpp").include("cpp/gloo_decl").define("USE_C10D_GLOO", None);
    for flag in flags(&torch) {
        shim.flag(flag);
    }
    shim.compile("marey_collective");

    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
    // For this package's own tests; a package with programs does the same in its build script.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:libdir={}", lib.display());

    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        let compiler = shim.get_compiler().path().to_path_buf();
        nccl_plugin(&compiler, &torch, &lib)?;
    }
    Ok(())
}

fn flags(torch: &Path) -> Vec<String> {
    let mut flags =
        vec!["-std=c++20".into(), "-D_GLIBCXX_USE_CXX11_ABI=1".into(), "-DUSE_DISTRIBUTED".into()];
    for dir in ["include", "include/torch/csrc/api/include"] {
        flags.extend(["-isystem".into(), torch.join(dir).display().to_string()]);
    }
    flags
}

/// Builds OUT_DIR/libmarey_nccl.so. Its CUDA libraries are found on the host that loads it.
fn nccl_plugin(compiler: &Path, torch: &Path, lib: &Path) -> Result<()> {
    let out = PathBuf::from(env::var("OUT_DIR")?).join("libmarey_nccl.so");
    let mut c = Command::new(compiler);
    c.args(["-shared", "-fPIC", "-O2", "-w", "-DUSE_C10D_NCCL"]).args(flags(torch));
    for dir in cuda_includes(torch)? {
        c.arg("-isystem").arg(dir);
    }
    // Declarations of the few handles that torch's headers name, where the wheels are absent.
    c.args(["-idirafter", "cpp/cuda_decl", "cpp/nccl_plugin.cpp", "-o"]).arg(&out);
    c.arg(format!("-L{}", lib.display()));
    // A reference to libtorch_cuda is what makes a host with a GPU load it.
    c.args(["-Wl,--no-as-needed", "-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10"]);
    c.args(["-Wl,--no-undefined", "-Wl,--unresolved-symbols=ignore-in-shared-libs"]);
    c.arg(format!("-Wl,-rpath,{}", lib.display()));
    let status = c.status().map_err(|e| format!("failed to run {}: {e}", compiler.display()))?;
    if !status.success() {
        return Err(
            format!("failed to build libmarey_nccl.so: {} ended with {status}", compiler.display()).into()
        );
    }
    println!("cargo:rustc-env=MAREY_NCCL_BUILT={}", out.display());
    println!("cargo:nccl_plugin={}", out.display());
    Ok(())
}

/// The include folders of the nvidia wheels: those set up for compiling, then those beside torch.
fn cuda_includes(torch: &Path) -> Result<Vec<PathBuf>> {
    for name in ["MAREY_CUDA_HEADERS", "MAREY_CACHE", "HOME"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let cache = || match env::var_os("MAREY_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache/marey"),
    };
    let headers =
        env::var_os("MAREY_CUDA_HEADERS").map_or_else(|| cache().join("cuda-headers-13.0"), PathBuf::from);
    let beside = torch.parent().ok_or("libtorch lies in no site folder")?;
    let found: Vec<PathBuf> = [headers.as_path(), beside]
        .iter()
        .flat_map(|site| {
            ["nvidia/nccl/include", "nvidia/cu13/include", "nvidia/cu13/include/cccl"].map(|d| site.join(d))
        })
        .filter(|dir| dir.is_dir())
        .collect();
    for header in ["nccl.h", "cuda_runtime_api.h", "crt/host_config.h", "nv/target"] {
        if !found.iter().any(|dir| dir.join(header).is_file()) {
            return Err(format!(
                "failed to find {header} for feature `cuda` in {} or {}; run scripts/setup.sh, or set MAREY_CUDA_HEADERS \
                 to a folder where pip put nvidia-nccl-cu13, nvidia-cuda-crt and nvidia-cuda-cccl",
                headers.display(),
                beside.join("nvidia").display()
            )
            .into());
        }
    }
    Ok(found)
}
