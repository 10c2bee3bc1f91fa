//! A dry run as a table for people.

use super::DryRun;
use std::fmt::Write;

/// The table, a name and its value a line.
pub fn text(run: &DryRun, config: &str) -> String {
    let mut out = format!("{config}: a dry run; nothing was started\n\n");
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<16}{value}");
    };
    line("dataset", run.dataset.clone());
    let input = format!("{} frames of {} x {}", run.frames, run.crop, run.crop);
    let classes = run.classes;
    let size = format!("{} parameters, {:.1} GFLOPs a clip", millions(run.parameters), run.gflops);
    line("network", format!("{size} of {input}, {classes} classes"));
    let (least, most) = (run.lanes_per_worker.iter().min(), run.lanes_per_worker.iter().max());
    let lanes = match (least, most) {
        (Some(a), Some(b)) if a != b => format!("{a} or {b} lanes each"),
        (Some(a), _) => format!("{a} lane{} each", if *a == 1 { "" } else { "s" }),
        _ => String::new(),
    };
    let passes = if run.passes > 1 { format!(" in {} passes", run.passes) } else { String::new() };
    line(
        "workers",
        format!(
            "{}, {lanes} of {}; up to {} clips a step{passes}",
            run.workers, run.lanes, run.clips_per_worker
        ),
    );
    let short = match run.last_batch {
        n if n == u64::from(run.global_batch) => String::new(),
        n => format!(", the last of {n}"),
    };
    if run.stages.is_empty() {
        let value =
            format!("{} clips in {} steps of {}{short}", run.clips, run.steps_per_epoch, run.global_batch);
        line("epoch", value);
    }
    for (i, stage) in run.stages.iter().enumerate() {
        let name = if i == 0 { "multigrid" } else { "" };
        let value = format!(
            "epochs {} to {}: {} steps each of {} clips of {} frames of {} pixels",
            stage.from,
            stage.end,
            stage.steps_per_epoch,
            list(&stage.batches),
            stage.frames,
            list(&stage.crops)
        );
        line(name, value);
    }
    line("job", format!("{} steps in {} epochs", run.total_steps, run.epochs));
    let scaled = match run.rate_scale {
        1.0 => String::new(),
        s => format!(" (the file's, times {s} for the global batch)"),
    };
    for (i, rate) in run.rates.iter().enumerate() {
        let value = format!("{:<10.4e}{} (epoch {})", rate.lr, rate.at, round(rate.epoch));
        line(if i == 0 { "learning rate" } else { "" }, if i == 0 { value + &scaled } else { value });
    }
    let m = &run.memory;
    let estimate = match run.recompute {
        false => "estimated from the layers' shapes; kernels' own buffers come on top",
        true => "estimated as if no block were computed again: an upper bound",
    };
    line("memory", format!("{} on the device of the worker with the largest share:", gib(m.total)));
    for (name, bytes, how) in [
        ("weights", m.weights, "exact"),
        ("gradients", m.gradients, "exact"),
        ("optimizer", m.optimizer, "exact"),
        ("moving average", m.ema, "exact"),
        ("activations", m.activations, estimate),
    ] {
        if bytes > 0 {
            line("", format!("{:>10}  {name}, {how}", gib(bytes)));
        }
    }
    line("", format!("{:>10}  prefetched batches at most, in the host's memory", gib(m.prefetch)));
    if let Some(bytes) = run.epoch_bytes {
        line("read", format!("{} an epoch, all workers together (windows in the middle)", gib(bytes)));
    }
    out
}

fn list(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

fn millions(n: u64) -> String {
    format!("{:.2} M", n as f64 / 1e6)
}

fn round(epoch: f64) -> f64 {
    (epoch * 100.0).round() / 100.0
}

fn gib(bytes: u64) -> String {
    match bytes {
        0..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}
