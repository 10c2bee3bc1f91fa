//! The networks against their reference implementations, run here and now by scripts/reference.py: logits and
//! gradients, to 1e-4 in float32 and 1e-10 in float64, both against the reference's float64 numbers.
#![allow(clippy::unwrap_used)] // helpers outside #[test] functions

use models::parity::check;
use std::{collections::HashMap, path::Path, process::Command};
use tch::{Device, Tensor};

/// Arguments of scripts/reference.py: a name, and what it runs on.
type Job = (&'static str, &'static str);

const WITH_GRADIENTS: &str = "--double --grad";

#[test]
fn slow_i3d_and_c2d() {
    agree(&[
        ("slow_r50", "--frames 4 --size 64"),
        ("slow_4x16_r50", "--frames 4 --size 65x90 --crop 33"),
        ("i3d_r50", "--size 64"),
        ("c2d_r50", "--size 64"),
        ("i3d_nln_r50", "--frames 4 --size 64"),
    ]);
}

#[test]
fn slowfast() {
    agree(&[
        ("slowfast_r50", "--frames 32 --size 64"),
        ("slowfast_r101", "--frames 16 --size 64"),
        ("slowfast_16x8_r101_50_50", "--frames 16 --size 64x96 --crop 64"),
    ]);
}

#[test]
fn slowfast_with_non_local_blocks() {
    agree(&[("slowfast_16x8_r101_nl", "--frames 16 --size 64")]);
}

#[test]
fn video_swin() {
    agree(&[
        ("swin3d_t", "--frames 16 --size 112"),
        // Patches, windows and mergings are padded; windows are clamped in time, then in space too.
        ("swin3d_t", "--frames 11 --size 90x70"),
        ("swin3d_t", "--frames 5 --size 30x140"),
        ("swin3d_s", "--frames 8 --size 64"),
        ("swin3d_b", "--frames 8 --size 64"),
    ]);
}

/// Logits alone: the published clips, and the fully convolutional test on a wider one.
#[test]
fn slowfast_at_its_published_size_and_fully_convolutional() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = [("slowfast_r50", "--size 224"), ("slowfast_r50", "--size 256x320 --crop 224")];
    for (job, file) in jobs.iter().zip(references(dir.path(), &jobs, "")) {
        let report = check(job.0, file(), false, false, Device::Cpu).unwrap();
        assert!(report.worst() < 1e-4, "{job:?}: {report:?}");
    }
}

/// Compares each job in both precisions, with gradients.
fn agree(jobs: &[Job]) {
    let dir = tempfile::tempdir().unwrap();
    for (job, file) in jobs.iter().zip(references(dir.path(), jobs, WITH_GRADIENTS)) {
        let reference = file();
        for (double, tolerance) in [(false, 1e-4), (true, 1e-10)] {
            let again = reference.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
            let report = check(job.0, again, true, double, Device::Cpu).unwrap();
            let (logits, worst) =
                (report.errors.iter().find(|e| e.name == "out").unwrap(), &report.errors[0]);
            println!(
                "{job:?} float{}: logits {:.1e}, gradients {:.1e} ({})",
                if double { 64 } else { 32 },
                logits.relative,
                worst.relative,
                worst.name
            );
            assert!(report.errors.len() > 100, "{job:?}: only {} tensors were compared", report.errors.len());
            assert!(report.worst() < tolerance, "{job:?}, double {double}: {worst:?}");
        }
    }
}

/// Has one Python process write all references; each is read, and its file deleted, when it is called for.
fn references<'a>(
    dir: &'a Path,
    jobs: &'a [Job],
    also: &str,
) -> impl Iterator<Item = impl FnOnce() -> HashMap<String, Tensor> + use<'a>> + use<'a> {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
    let cache = std::env::var("MAREY_CACHE")
        .unwrap_or_else(|_| format!("{}/.cache/marey", std::env::var("HOME").unwrap()));
    let packages = Path::new(&cache).join("reference");
    assert!(
        packages.is_dir(),
        "{} is missing: run scripts/setup.sh, which installs the references",
        packages.display()
    );
    let path = move |i: usize| dir.join(format!("{i}.safetensors"));
    let line = |(i, (name, size)): (usize, &Job)| format!("{name} {} {size} {also}\n", path(i).display());
    let list = dir.join("jobs");
    std::fs::write(&list, jobs.iter().enumerate().map(line).collect::<String>()).unwrap();
    let done = Command::new(scripts.join("reference-python"))
        .arg(scripts.join("reference.py"))
        .arg("--jobs")
        .arg(&list)
        .output()
        .unwrap();
    assert!(done.status.success(), "reference.py failed: {}", String::from_utf8_lossy(&done.stderr));
    (0..jobs.len()).map(move |i| {
        move || {
            let tensors = Tensor::read_safetensors(path(i)).unwrap();
            std::fs::remove_file(path(i)).unwrap();
            tensors.into_iter().collect()
        }
    })
}
