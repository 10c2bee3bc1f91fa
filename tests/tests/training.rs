//! What a recipe asks of a step: the same numbers however a global batch is cut, and steps that go wrong.

use tests::{
    job::{checkpoint, events, losses},
    small::{Fixture, SLOWFAST, SWIN},
};

/// The losses of a job of 20 steps.
fn train(f: &Fixture, text: &str, workers: usize, name: &str, overrides: &[&str]) -> Vec<f64> {
    let config = f.config("job.toml", text);
    let run = f.run(name);
    f.train(&config, workers, &run, overrides).finish();
    let losses: Vec<f64> = losses(&run).into_values().collect();
    assert_eq!(losses.len(), 20, "{losses:?}");
    losses
}

#[track_caller]
fn same(a: &[f64], b: &[f64], tolerance: f64) {
    for (step, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * a.abs(), "step {}: {a} and {b}", step + 1);
    }
}

#[test]
fn accumulated_gradients_are_those_of_the_whole_batch() {
    let f = Fixture::new();
    let whole = train(&f, SWIN, 1, "whole", &[]);
    // Passes of 3, 3 and 2 clips, and of 3 and 1 on each of two workers.
    same(&whole, &train(&f, SWIN, 1, "parts", &["train.micro_batch=3"]), 1e-5);
    same(&whole, &train(&f, SWIN, 2, "parts2", &["train.micro_batch=3"]), 1e-5);
}

#[test]
fn activations_computed_again_give_the_same_losses() {
    let f = Fixture::new();
    let dropped = ["model.drop_path=0.3", "train.precision=bf16"];
    let kept = train(&f, SWIN, 2, "kept", &dropped);
    same(
        &kept,
        &train(&f, SWIN, 2, "again", &[&dropped[..], &["train.checkpoint_activations=true"]].concat()),
        0.0,
    );
}

/// Batch statistics over the group: three workers have 3, 3 and 2 of 8 lanes, and the last batch of 60 clips
/// leaves 2, 1 and 1.
#[test]
fn synchronised_batch_norm_does_not_see_the_workers() {
    let f = Fixture::new();
    let sync = [
        "train.batch_norm={ kind = \"sync\" }",
        "train.precision=fp32",
        "model.dropout=0.0",
        "optimizer.lr=0.01",
        "train.eval_every_epochs=0",
    ];
    let one = train(&f, SLOWFAST, 1, "one", &sync);
    // Batch norm in a fresh network makes rounding errors grow from step to step.
    same(&one[..8], &train(&f, SLOWFAST, 3, "three", &sync)[..8], 1e-3);
    let local: Vec<&str> = sync[1..].to_vec();
    let apart = train(&f, SLOWFAST, 3, "local", &local);
    let gap = (one[0] - apart[0]).abs() / one[0];
    assert!(gap > 1e-3, "local statistics must differ, or the test shows nothing: {gap:e}");
}

#[test]
fn clipping_the_averaged_weights_and_rates_do_what_they_say() {
    let f = Fixture::new();
    let plain = train(&f, SWIN, 1, "plain", &["optimizer.kind=sgd", "train.ema={ decay = 0.5 }"]);
    let norms: Vec<f64> = events(&f.run("plain"))
        .iter()
        .filter(|e| e["kind"] == "step")
        .filter_map(|e| e["grad_norm"].as_f64())
        .collect();
    assert!(norms.len() == 20 && norms.iter().all(|n| *n > 0.0), "{norms:?}");
    let clipped = train(&f, SWIN, 1, "clipped", &["optimizer.kind=sgd", "train.clip_norm=1e-6"]);
    assert!(clipped.iter().zip(&plain).skip(3).all(|(a, b)| a != b));
    assert_eq!(clipped[0], plain[0], "the first loss comes before any step");
    // The rate for 16 clips is halved for 8, which `lr` says outright.
    let scaled = train(&f, SWIN, 1, "scaled", &["optimizer.lr=2e-3", "optimizer.reference_batch=16"]);
    same(&scaled, &train(&f, SWIN, 1, "halved", &["optimizer.lr=1e-3"]), 1e-12);
    let saved = checkpoint(&f.run("plain"), 20);
    let (ema, model) = ("ema/head.weight", "model/head.weight");
    assert_ne!(saved[ema], saved[model], "the average lags behind");
    assert_eq!(saved[ema].1, saved[model].1);
}

#[test]
fn steps_that_are_no_numbers_are_skipped_and_then_the_job_stops() {
    let f = Fixture::new();
    let config = f.config("job.toml", SWIN);
    let run = f.run("diverges");
    let diverge = [
        "optimizer.kind=sgd",
        "optimizer.lr=1e30",
        "train.max_skipped_steps=2",
        "schedule.warmup_epochs=0.0",
    ];
    let (code, said) = f.train(&config, 2, &run, &diverge).finish_any();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is skipped on every worker: the loss of ["), "{said}");
    assert!(said.contains("and 3 steps in a row had to be skipped"), "{said}");
}
