//! What a person reads when a configuration is wrong: the key, the value and what to do.

use configs::Config;

const GOOD: &str = include_str!("../demo.toml");

/// The message for the demo's recipe with overrides.
fn refusal(overrides: &[&str]) -> String {
    let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
    match Config::parse("demo.toml", GOOD, &overrides) {
        Ok(_) => panic!("{overrides:?} should be refused"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn the_demo_is_good_and_overrides_apply() {
    let set = ["train.epochs=3".to_string(), "data.url=s3://b/k".into(), "data.augment.crop=32".into()];
    let config = Config::parse("demo.toml", GOOD, &set).unwrap();
    assert_eq!(config.train.epochs, 3);
    assert_eq!(config.data.url, "s3://b/k");
    assert_eq!(config.data.augment.crop, 32);
    let same = Config::parse("other name", config.text(), &[]).unwrap();
    assert_eq!(same.digest(), config.digest());
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest() {
    let said = refusal(&["train.epoch=3"]);
    assert!(said.contains("demo.toml") && said.contains("`epoch`"), "{said}");
    assert!(said.contains("did you mean `epochs`?"), "{said}");
    let said = refusal(&["model.widht=3"]);
    assert!(said.contains("did you mean `width`?"), "{said}");
    let said = refusal(&["optimiser.lr=3"]);
    assert!(said.contains("did you mean `optimizer`?"), "{said}");
}

#[test]
fn a_wrong_type_or_unit_names_its_key() {
    let said = refusal(&["train.epochs=many"]);
    assert!(said.contains("train.epochs"), "{said}");
    let said = refusal(&["data.prefetch=64"]);
    assert!(said.contains("data.prefetch"), "{said}");
    let said = refusal(&["data.cache={ folder = '/tmp/c', limit = '200' }"]);
    assert!(said.contains("data.cache.limit") && said.contains("256 MiB"), "{said}");
    let said = refusal(&["checkpoint.bandwidth=fast"]);
    assert!(said.contains("checkpoint.bandwidth") && said.contains("256 MiB"), "{said}");
    let said = refusal(&["checkpoint.keep_best=loss"]);
    assert!(said.contains("checkpoint.keep_best") && said.contains("top1"), "{said}");
    let said = refusal(&["cluster.gather=soon"]);
    assert!(said.contains("cluster.gather") && said.contains("\"30s\""), "{said}");
}

#[test]
fn a_bad_override_is_quoted() {
    assert!(refusal(&["train.epochs"]).contains("--set train.epochs: write it like train.epochs=10"));
    assert!(refusal(&["=3"]).contains("the key is empty"));
    assert!(refusal(&["train.epochs.x=3"]).contains("epochs is not a section"));
}

#[test]
fn broken_toml_names_the_line() {
    let said = Config::parse("broken.toml", "[data\nurl = 3", &[]).unwrap_err().to_string();
    assert!(said.contains("broken.toml") && said.contains("line 1"), "{said}");
    let said = Config::read("no/such.toml".as_ref(), &[]).unwrap_err().to_string();
    assert!(said.contains("no/such.toml"), "{said}");
}

#[test]
fn sizes_that_do_not_fit_are_named() {
    let cases: &[(&[&str], &str, &str)] = &[
        (&["train.global_batch=12"], "data.lanes", "12 is not a multiple of data.lanes = 8"),
        (&["cluster.workers=9"], "cluster.workers", "9 workers cannot share data.lanes = 8"),
        (&["data.lanes=0"], "data.lanes", "greater than 0"),
        (&["data.frames=15"], "data.frames", "15 frames are not a multiple of model.alpha = 4"),
        (&["data.augment.crop=80"], "data.augment.scale", "at least the crop, 80"),
        (&["data.eval.crop=80"], "data.eval.short_side", "72 is smaller than the crop, 80"),
        (&["data.augment.flip=1.5"], "data.augment.flip", "between 0 and 1"),
        (&["data.augment.repeats=0"], "data.augment.repeats", "between 1 and 100"),
        (
            &["data.augment.color_jitter={ contrast = 1.5 }"],
            "data.augment.color_jitter.contrast",
            "between 0 and 1",
        ),
        (
            &["data.augment.rand_augment={ magnitude = 11.0, num_ops = 2 }"],
            "data.augment.rand_augment.magnitude",
            "between 0 and 10",
        ),
        (
            &["data.augment.rand_augment={ magnitude = 7.0, num_ops = 0 }"],
            "data.augment.rand_augment.num_ops",
            "between 1 and 100",
        ),
        (
            &["data.augment.random_erasing={ prob = 0.25, area = [0.4, 0.2] }"],
            "data.augment.random_erasing.area",
            "ascending",
        ),
        (&["data.requests={ at_once = 0 }"], "data.requests.at_once", "between 1 and 1024"),
        (&["data.requests={ whole = \"0s\" }"], "data.requests.whole", "greater than 0"),
        (&["data.requests={ backoff = [\"2s\", \"1s\"] }"], "data.requests.backoff", "shorter wait first"),
        (&["data.requests={ hedge_share = 1.5 }"], "data.requests.hedge_share", "between 0 and 1"),
        (&["mix={ mixup_alpha = 0.0 }"], "mix.mixup_alpha", "above 0"),
        (&["mix={ mixup_alpha = 0.8, prob = 1.2 }"], "mix.prob", "between 0 and 1"),
        (&["data.epoch_clips=9"], "data.epoch_clips", "class_balanced"),
        (&["data.sampling=class_balanced", "data.epoch_clips=0"], "data.epoch_clips", "greater than 0"),
        (&["data.mixture=[{ url = \"x\", weight = 0.0 }]"], "data.mixture.weight", "greater than 0"),
        (
            &["data.mixture=[{ url = \"x\", weight = 1.0 }]", "data.sampling=class_balanced"],
            "data.sampling",
            "by its weights",
        ),
        (&["data.shuffle=grouped", "data.sampling=class_balanced"], "data.shuffle", "every clip once"),
        (&["data.shuffle=grouped", "data.shuffle_window='0'"], "data.shuffle_window", "is not a size"),
        (
            &["data.shuffle=grouped", "data.cache={ folder = '/tmp/c', limit = '1 GiB' }"],
            "data.shuffle",
            "not cached",
        ),
        (&["data.quarantine="], "data.quarantine", "name a text file"),
        (&["data.std=[0.2, 0.0, 0.2]"], "data.std", "greater than 0"),
        (&["data.fps=-1.0"], "data.fps", "greater than 0"),
        (&["data.cache={ folder = '', limit = '1 GiB' }"], "data.cache.folder", "name a folder"),
        (&["checkpoint.local={ folder = '' }"], "checkpoint.local.folder", "name a folder"),
        (&["checkpoint.local={ folder = '/fast', keep = 0 }"], "checkpoint.local.keep", "at least 1"),
        (&["data.nominal={ clips = 0, classes = 3 }"], "data.nominal.clips", "greater than 0"),
        (&["model.depth=34"], "model.depth", "18, 50 or 101"),
        (&["model.width=18"], "model.width", "not a multiple of model.beta = 4"),
        (&["model.fusion_kernel=4"], "model.fusion_kernel", "odd"),
        (&["model.dropout=1.0"], "model.dropout", "below 1"),
        (&["train.epochs=0"], "train.epochs", "greater than 0"),
        (&["train.max_steps=0"], "train.max_steps", "greater than 0"),
        (&["optimizer.lr=0.0"], "optimizer.lr", "greater than 0"),
        (&["optimizer.betas=[0.9, 1.0]"], "optimizer.betas", "below 1"),
        (
            &["train.epochs=7", "schedule.warmup_epochs=7.0"],
            "schedule.warmup_epochs",
            "fewer than train.epochs = 7",
        ),
        (&["schedule.end_lr=1.0"], "schedule.end_lr", "above optimizer.lr"),
        (&["schedule.steps=[1.0]"], "schedule.steps", "only for kind"),
        (&["schedule.kind=steps", "schedule.steps=[3.0]"], "schedule.relative_lrs", "0 rates for 1 steps"),
        (
            &["schedule.kind=steps", "schedule.steps=[3.0, 2.0]", "schedule.relative_lrs=[0.1, 0.01]"],
            "schedule.steps",
            "must ascend",
        ),
        (&["checkpoint.keep=0"], "checkpoint.keep", "keep at least 1"),
        (&["checkpoint.every_steps=0"], "checkpoint.every_steps", "greater than 0"),
        (&["checkpoint.keep_every=0"], "checkpoint.keep_every", "greater than 0"),
        (&["cluster.min_workers=3"], "cluster.min_workers", "more than cluster.workers = 2"),
        (&["cluster.beat_timeout=0s"], "cluster.beat_timeout", "greater than 0"),
    ];
    for (overrides, key, words) in cases {
        let said = refusal(overrides);
        assert!(said.contains(&format!("understand {key} in demo.toml")), "{overrides:?}: {said}");
        assert!(said.contains(words), "{overrides:?}: {said}");
    }
}

#[test]
fn swin_heads_must_share_the_channels() {
    let swin = include_str!("../swin3d_t_k400.toml");
    let said = Config::parse("swin", swin, &["model.heads=[3, 6, 12, 25]".into()]).unwrap_err().to_string();
    assert!(said.contains("stage 3 has 768 channels, which 25 heads cannot share"), "{said}");
    let said = Config::parse("swin", swin, &["model.heads=[3, 6]".into()]).unwrap_err().to_string();
    assert!(said.contains("2 numbers for 4 stages"), "{said}");
}

#[test]
fn views_are_written_with_an_x() {
    use configs::{TestSampling, Views};
    assert_eq!("10x3".parse(), Ok(Views { clips: 10, crops: 3 }));
    for bad in ["10", "0x3", "3x0", "x", "10x3x1", "-1x3"] {
        assert!(bad.parse::<Views>().is_err(), "{bad}");
    }
    assert_eq!(Views { clips: 4, crops: 3 }.to_string(), "4x3");
    let good = Config::parse("demo.toml", GOOD, &[]).unwrap();
    assert_eq!(
        (good.data.test_views().views.to_string().as_str(), good.data.test_views().crop),
        ("10x3", 64)
    );
    let said = refusal(&["data.test={ views = \"10\", short_side = 64, crop = 64 }"]);
    assert!(said.contains("clips x crops"), "{said}");
    for name in ["pyslowfast", "mmaction2"] {
        assert_eq!(name.parse::<TestSampling>().unwrap().to_string(), name);
    }
}
