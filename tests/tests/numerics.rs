//! A resumed run is the same run, and the number of workers does not change the losses.

use tests::{
    job::{checkpoint, losses},
    small::{Fixture, SLOWFAST, SWIN},
};

fn resumed_is_uninterrupted(text: &str, workers: usize, overrides: &[&str]) {
    let f = Fixture::new();
    let config = f.config("job.toml", text);
    let (straight, resumed) = (f.run("straight"), f.run("resumed"));
    f.train(&config, workers, &straight, overrides).finish();

    let mut first = f.train(&config, workers, &resumed, overrides);
    first.wait_line(&["checkpoint", "step 10"]);
    first.kill_all();
    let at = |step: u64| resumed.join(format!("checkpoints/step-{step:09}/manifest.json")).exists();
    assert!(at(10) && !at(20), "the kill must come between step 10 and step 20");
    let second = f.train(&config, workers, &resumed, overrides).finish();
    assert!(second.contains("resumed from the checkpoint of step 10"), "{second}");

    let (a, b) = (checkpoint(&straight, 20), checkpoint(&resumed, 20));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    assert!(a.keys().any(|k| k.starts_with("optimizer/")) && a.keys().any(|k| k.starts_with("model/")));
    let differing: Vec<_> = a.iter().filter(|(k, v)| b[*k] != **v).map(|(k, _)| k).collect();
    assert!(differing.is_empty(), "{} of {} tensors differ: {differing:?}", differing.len(), a.len());
    // Reports of the last seconds before the kill may be lost; those after the resume are all there.
    let (a, b) = (losses(&straight), losses(&resumed));
    assert_eq!(a.len(), 20);
    assert!((11..=20).all(|step| b.contains_key(&step)), "{b:?}");
    for (step, loss) in &b {
        assert_eq!(a[step].to_bits(), loss.to_bits(), "the loss of step {step}: {} and {loss}", a[step]);
    }
}

#[test]
fn slowfast_resumed_after_sigkill_has_the_same_bits() {
    resumed_is_uninterrupted(SLOWFAST, 2, &[]);
}

/// Three ranks: the order of additions in the all-reduce matters.
#[test]
fn swin_resumed_after_sigkill_has_the_same_bits() {
    resumed_is_uninterrupted(SWIN, 3, &[]);
}

#[test]
fn one_two_and_three_workers_have_the_same_losses() {
    the_world_changes_no_loss(3, &[]);
}

fn the_world_changes_no_loss(worlds: usize, overrides: &[&str]) {
    let f = Fixture::new();
    let config = f.config("swin.toml", SWIN);
    let runs: Vec<_> = (1..=worlds)
        .map(|n| {
            let run = f.run(&format!("world{n}"));
            f.train(&config, n, &run, overrides).finish();
            losses(&run)
        })
        .collect();
    assert_eq!(runs[0].len(), 20);
    assert!((runs[0][&1] - runs[0][&20]).abs() > 1e-3, "nothing was learnt: {:?}", runs[0]);
    for (n, run) in runs.iter().enumerate().skip(1) {
        for (step, loss) in run {
            let one = runs[0][step];
            assert!(
                (loss - one).abs() <= 1e-5 * one.abs(),
                "step {step}: {one} with 1 worker, {loss} with {}",
                n + 1
            );
        }
    }
}

/// All that a recipe can ask for at once: whatever it draws or remembers must come back.
const EVERYTHING: [&str; 14] = [
    "data.augment.repeats=2",
    "data.augment.color_jitter={ brightness = 0.4, contrast = 0.4, saturation = 0.4 }",
    "data.augment.rand_augment={ magnitude = 7, num_ops = 2 }",
    "data.augment.random_erasing={ prob = 0.5 }",
    "loss.label_smoothing=0.1",
    "mix={ mixup_alpha = 0.8, cutmix_alpha = 1.0 }",
    "train.micro_batch=4",
    "train.clip_norm=1.0",
    "train.ema={ decay = 0.9 }",
    "train.batch_norm={ kind = \"sub_batch\", clips = 2 }",
    "train.precise_bn_batches=3",
    "optimizer.reference_batch=16",
    "optimizer.groups={ backbone = 0.5, layer_decay = 0.9 }",
    "model.dropout=0.3",
];

#[test]
fn a_job_with_everything_resumes_with_the_same_bits() {
    resumed_is_uninterrupted(SLOWFAST, 2, &EVERYTHING);
}

/// Four epochs in three steps of 4 frames of 16 or 23 pixels, then steps of 8 frames of 16, 24 and 32 pixels:
/// the shape changes between the steps 12 and 13, and the short cycle's with every step.
const MULTIGRID: [&str; 4] = [
    "train.epochs=4",
    "train.global_batch=4",
    "data.lanes=4",
    "train.multigrid={ long_cycle_factors = [[0.5, 0.70710678], [1.0, 1.0]], short_cycle_factors = [0.5, 0.75] }",
];

#[test]
fn multigrid_resumes_with_the_same_bits() {
    resumed_is_uninterrupted(SLOWFAST, 2, &[&EVERYTHING[..], &MULTIGRID].concat());
}

#[test]
fn multigrid_has_the_same_losses_with_two_workers() {
    the_world_changes_no_loss(2, &MULTIGRID);
}
