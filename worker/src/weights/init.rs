//! `train.init`: a new run begins with the weights of another, or with imported ones.

use crate::{Error, Result, checkpoint::load};
use configs::Config;
use models::{Model, weights::Source};
use storage::Location;

/// Fills `model`, built from `config` for `labels`, with the weights of the run or checkpoint at `url`; optimizer
/// state and position are left there, and averaged weights are preferred. `log` gets (level, text) of what was taken and what starts fresh.
pub async fn start(
    url: &str,
    config: &Config,
    labels: &[String],
    model: &mut Model,
    mut log: impl FnMut(&str, String),
) -> Result<()> {
    let loaded = load::open(&Location::parse(url)?, |text| log("warn", text)).await?;
    let folder = loaded.url.clone();
    let (header, parts) = loaded.into_parts();
    let report = Source::read(parts.model)
        .and_then(|source| source.load_into(model, &config.model))
        .map_err(|source| Error::Init { url: folder.clone(), source })?;
    let fresh = match &report.fresh[..] {
        [] => String::new(),
        [first, .., last] => format!("; {} start fresh, from {first} to {last}", report.fresh.len()),
        [one] => format!("; {one} starts fresh"),
    };
    log("info", format!("began with {} tensors of {} from {folder}{fresh}", report.loaded, report.source));
    if report.unused.is_empty() && header.labels != labels {
        log("warn", format!("the classifier of {folder} was kept, but its classes have other names"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checkpoint::{Header, Place, layout::NO_DATASET},
        weights::import::commit,
    };
    use tch::Device;

    const JOB: &str = r#"
        [data]
        url = "clips"
        lanes = 4
        frames = 8
        augment = { crop = 32, scale = { kind = "short_side", min = 32, max = 40 } }
        eval = { short_side = 32, crop = 32 }
        [model]
        arch = "video_swin"
        embed_dim = 12
        depths = [1, 1]
        heads = [2, 4]
        window = [2, 3, 3]
        [train]
        epochs = 2
        global_batch = 8
        [optimizer]
        kind = "adamw"
        lr = 0.001
        "#;

    fn names(classes: usize) -> Vec<String> {
        (0..classes).map(|i| format!("move {i}")).collect()
    }

    fn fresh(config: &Config, classes: usize) -> Model {
        tch::manual_seed(classes as i64);
        Model::new(&config.model, classes as i64, 8, 32, Device::Cpu).unwrap()
    }

    /// What `start` says of a run of 3 classes, and the model that it filled.
    async fn started(config: &Config, labels: &[String]) -> (crate::Result<Vec<String>>, Model, Model) {
        let dir = tempfile::tempdir().unwrap();
        let run = Location::parse(&dir.path().display().to_string()).unwrap();
        let before = Config::parse("test", JOB, &[]).unwrap();
        let trained = fresh(&before, 3);
        let place = Place { epoch: 1, step_in_epoch: 0, step: 40 };
        commit(&run, &trained, Header::new(&before, &names(3), NO_DATASET, place, 1, 0).unwrap())
            .await
            .unwrap();
        let mut model = fresh(config, labels.len());
        let mut said = vec![];
        let log = |level: &str, text| said.push(format!("{level} {text}"));
        let result = start(run.url(), config, labels, &mut model, log).await;
        (result.map(|()| said), trained, model)
    }

    fn same(a: &Model, b: &Model, name: &str) -> bool {
        let named = |m: &Model| m.tensors().into_iter().find(|t| t.name == name).unwrap().tensor;
        let (a, b) = (named(a), named(b));
        a.size() == b.size() && a.equal(&b)
    }

    #[tokio::test]
    async fn a_run_starts_from_another_s_weights() {
        let config = Config::parse("test", JOB, &["model.drop_path=0.3".into()]).unwrap();
        let (said, trained, model) = started(&config, &names(3)).await;
        assert!(trained.tensors().iter().all(|t| same(&trained, &model, &t.name)));
        let said = said.unwrap();
        assert!(
            said.len() == 1 && said[0].contains("torchvision swin3d") && said[0].contains("step-000000040")
        );

        let others = ["a", "b", "c"].map(String::from);
        let (said, ..) = started(&config, &others).await;
        assert!(said.unwrap()[1].contains("other names"));
    }

    #[tokio::test]
    async fn a_classifier_of_another_size_starts_fresh() {
        let config = Config::parse("test", JOB, &[]).unwrap();
        let (said, trained, model) = started(&config, &names(5)).await;
        assert!(said.unwrap()[0].ends_with("; 2 start fresh, from head.weight to head.bias"));
        assert!(
            same(&trained, &model, "features.2.0.mlp.3.weight") && !same(&trained, &model, "head.weight")
        );
        let own = fresh(&config, 5);
        assert!(same(&own, &model, "head.weight"), "from the run's own seed");
    }

    #[tokio::test]
    async fn another_window_in_time_is_fitted_and_another_network_refused() {
        let longer = Config::parse("test", JOB, &["model.window=[4, 3, 3]".into()]).unwrap();
        let (said, trained, model) = started(&longer, &names(3)).await;
        said.unwrap();
        assert!(same(&trained, &model, "features.0.0.attn.qkv.weight"));
        let deeper = Config::parse("test", JOB, &["model.depths=[1, 2]".into()]).unwrap();
        let e = started(&deeper, &names(3)).await.0.unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("missing: features.2.1.norm1.weight"), "{e}");
    }
}
