//! Round trips through a folder on disk, and every way in which a checkpoint can be bad.

mod local;
mod shared;

use super::{
    layout::{self, FileEntry, Header, Manifest, Part, Place},
    load,
    save::{self, Entry, Snapshot},
};
use crate::{Error, optim::Optimizer};
use configs::Config;
use std::path::Path;
use storage::Location;
use tch::{Device, Kind, Tensor};

const JOB: &str = r#"
[data]
url = "clips"
lanes = 4
frames = 8
augment = { crop = 32, scale = { kind = "short_side", min = 32, max = 40 } }
eval = { short_side = 32, crop = 32 }
[model]
arch = "slowfast"
depth = 18
width = 8
[train]
epochs = 2
global_batch = 8
[optimizer]
kind = "adamw"
lr = 0.001
"#;

fn config() -> Config {
    Config::parse("test", JOB, &[]).unwrap()
}

fn labels() -> Vec<String> {
    ["left", "right", "up"].map(String::from).to_vec()
}

fn header(step: u64, world: u32) -> Header {
    let place = Place { epoch: 1, step_in_epoch: 2, step };
    Header::new(&config(), &labels(), "d1", place, world, 3).unwrap()
}

fn model(seed: i64) -> models::Model {
    tch::manual_seed(seed);
    models::Model::new(&config().model, 3, 8, 32, Device::Cpu).unwrap()
}

fn entries(model: &models::Model, optimizer: Vec<(String, Tensor)>) -> Vec<Entry> {
    let mut entries = Entry::of_model(model);
    entries.extend(Entry::of_part(Part::Optimizer, optimizer));
    entries
}

fn copies(tensors: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    tensors.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect()
}

/// Uploads every rank's share and commits as the coordinator does: header fields and files, flat.
async fn commit(run: &Location, snapshots: Vec<Snapshot>, with_manifest: bool) {
    let (mut header, mut files, mut step) = (None, vec![], 0);
    for snapshot in snapshots {
        let shard = snapshot.upload(run).await.unwrap();
        step = shard.step;
        let entry = |f: proto::v1::CheckpointFile| FileEntry { key: f.key, bytes: f.bytes, sha256: f.sha256 };
        files.extend(shard.files.into_iter().map(entry));
        if !shard.header_json.is_empty() {
            header = Some(serde_json::from_str(&shard.header_json).unwrap());
        }
    }
    if with_manifest {
        let manifest = Manifest { header: header.unwrap(), files }.to_json().unwrap();
        let key = format!("{}/{}", layout::step_folder(step), layout::MANIFEST);
        run.put_if_absent(&key, manifest).await.unwrap();
    }
}

/// A checkpoint of step `step` by `world` ranks.
async fn write(run: &Location, step: u64, world: u32, with_manifest: bool) {
    let model = model(step as i64);
    let optimizer = Optimizer::new(&config().optimizer, &model.tensors()).unwrap();
    let share = |rank| save::snapshot(entries(&model, optimizer.state()), header(step, world), rank).unwrap();
    commit(run, (0..world).map(share).collect(), with_manifest).await;
}

fn run_in(dir: &Path) -> Location {
    Location::parse(&dir.display().to_string()).unwrap()
}

async fn best(run: &Location) -> (crate::Result<Option<load::Loaded>>, Vec<String>) {
    let mut log = vec![];
    let loaded = load::best(run, &Part::ALL, |m| log.push(m)).await;
    (loaded, log)
}

#[tokio::test]
async fn round_trip_at_any_world_size() {
    let want = model(7);
    for world in [1, 2, 3] {
        let dir = tempfile::tempdir().unwrap();
        let run = run_in(dir.path());
        assert!(best(&run).await.0.unwrap().is_none());
        write(&run, 7, world, true).await;
        let loaded = best(&run).await.0.unwrap().unwrap();
        assert_eq!(loaded.header, header(7, world));
        assert_eq!(loaded.header.place(), Place { epoch: 1, step_in_epoch: 2, step: 7 });
        assert_eq!(loaded.config().unwrap().digest(), config().digest());
        loaded.check_model(&config().model, 3).unwrap();
        loaded.check_labels(&labels()).unwrap();
        assert_eq!(loaded.model_tensors().len(), want.state_dict().len());
        for (name, tensor) in want.state_dict() {
            assert!(loaded.model_tensors()[&name].equal(&tensor), "{name} at world {world}");
        }
        let mut restored = model(8);
        let (_, parts) = loaded.into_parts();
        restored.load(parts.model).unwrap();
        Optimizer::new(&config().optimizer, &restored.tensors()).unwrap().load(parts.optimizer).unwrap();
        assert!(parts.ema.is_empty());
        // A step's folder serves as well as the run.
        let folder = run.join(&layout::step_folder(7));
        let opened = load::open(&folder, |_| ()).await.unwrap();
        assert_eq!(opened.header.step, 7);
        assert!(opened.optimizer_tensors().is_empty(), "a command has no use for them");
    }
}

#[tokio::test]
async fn damage_is_named_and_the_one_before_used() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(dir.path());
    write(&run, 5, 2, true).await;
    write(&run, 10, 2, true).await;
    write(&run, 15, 2, false).await;
    let (loaded, log) = best(&run).await;
    assert_eq!(loaded.unwrap().unwrap().header.step, 10);
    assert!(
        log.len() == 1 && log[0].contains("step-000000015") && log[0].contains("never finished"),
        "{log:?}"
    );

    let file = dir.path().join("checkpoints/step-000000010/g000003/optimizer-2-of-2.safetensors");
    let good = std::fs::read(&file).unwrap();
    let mut flipped = good.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    for (bytes, reason) in [(flipped, "SHA-256"), (good[..last].to_vec(), "bytes instead of")] {
        std::fs::write(&file, bytes).unwrap();
        let (loaded, log) = best(&run).await;
        assert_eq!(loaded.unwrap().unwrap().header.step, 5);
        assert!(log[1].contains("optimizer-2-of-2.safetensors") && log[1].contains(reason), "{log:?}");
    }
    std::fs::remove_file(&file).unwrap();
    let (loaded, log) = best(&run).await;
    assert_eq!(loaded.unwrap().unwrap().header.step, 5);
    assert!(log[1].contains("gone"), "{log:?}");
}

#[tokio::test]
async fn nothing_but_damage_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(dir.path());
    write(&run, 5, 1, true).await;
    let manifest = dir.path().join("checkpoints/step-000000005/manifest.json");
    let good = std::fs::read_to_string(&manifest).unwrap();

    std::fs::write(&manifest, &good[..good.len() / 2]).unwrap();
    let (loaded, _) = best(&run).await;
    assert!(matches!(loaded, Err(Error::Checkpoint { url, .. }) if url.ends_with("manifest.json")));

    std::fs::write(&manifest, good.replace("\"version\": 1", "\"version\": 2")).unwrap();
    let error = best(&run).await.0.unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("newer"), "{error}");

    std::fs::write(&manifest, good.replace("optimizer-1-of-1", "notes")).unwrap();
    assert!(best(&run).await.0.is_err());
}

#[tokio::test]
async fn a_lying_safetensors_header_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(dir.path());
    write(&run, 5, 1, true).await;
    let folder = dir.path().join("checkpoints/step-000000005");
    let file = folder.join("g000003/model-1-of-1.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let before = storage::sha256_hex(&bytes);
    bytes[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    std::fs::write(&file, &bytes).unwrap();
    // The manifest agrees with the file: only the parser can notice.
    let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    std::fs::write(folder.join("manifest.json"), manifest.replace(&before, &storage::sha256_hex(&bytes)))
        .unwrap();
    let error = best(&run).await.0.unwrap_err().to_string();
    assert!(error.contains("no safetensors file"), "{error}");
}

#[tokio::test]
async fn an_empty_place_is_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let error = load::open(&run_in(dir.path()), |_| ()).await.unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("finished checkpoint"), "{error}");
}

#[tokio::test]
async fn another_model_or_other_labels_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(dir.path());
    write(&run, 5, 1, true).await;
    let loaded = load::open(&run, |_| ()).await.unwrap();
    let set = |s: &str| Config::parse("test", JOB, &[s.into()]).unwrap().model.clone();
    loaded.check_model(&set("model.dropout=0.1"), 3).unwrap();
    let error = loaded.check_model(&set("model.width=16"), 4).unwrap_err().to_string();
    assert!(
        error.contains("model.width is 8") && error.contains("and 16 here") && error.contains("3 classes"),
        "{error}"
    );
    let swin = models::presets("swin3d_t").unwrap();
    assert!(loaded.check_model(&swin, 3).unwrap_err().to_string().contains("model.arch"));
    let error = loaded.check_labels(&["left".into(), "down".into()]).unwrap_err().to_string();
    assert!(
        error.contains(r#"class 1 is "right" in the checkpoint and "down""#) && error.contains("class 2"),
        "{error}"
    );
}

#[tokio::test]
async fn every_type_and_layout_survives_bit_by_bit() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(dir.path());
    let f = Tensor::from_slice(&[f32::MIN_POSITIVE / 2.0, -0.0, f32::NAN, 1.0 / 3.0, f32::INFINITY, 7.5])
        .reshape([2, 3]);
    let tensors = vec![
        ("float".to_string(), f.copy()),
        ("bfloat".to_string(), f.to_kind(Kind::BFloat16)),
        ("strided".to_string(), f.t_copy()),
        ("transposed".to_string(), f.tr()),
        ("count".to_string(), Tensor::from(i64::MAX)),
        ("flags".to_string(), Tensor::from_slice(&[true, false])),
        ("none".to_string(), Tensor::zeros([0, 4], (Kind::Float, Device::Cpu))),
    ];
    commit(
        &run,
        (0..2)
            .map(|r| save::snapshot(entries(&model(1), copies(&tensors)), header(5, 2), r).unwrap())
            .collect(),
        true,
    )
    .await;
    let loaded = load::best(&run, &Part::ALL, |_| ()).await.unwrap().unwrap();
    let bits = |t: &Tensor| {
        let mut bytes = vec![0u8; t.numel() * t.kind().elt_size_in_bytes()];
        t.copy_data_u8(&mut bytes, t.numel());
        (t.kind(), t.size(), bytes)
    };
    for (name, tensor) in &tensors {
        assert_eq!(bits(&loaded.optimizer_tensors()[name]), bits(tensor), "{name}");
    }
}

#[tokio::test]
async fn large_files_go_in_parts_and_come_back_in_ranges() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(dir.path());
    // 36 MiB: three parts of an upload, two ranges of a download.
    let large = Tensor::arange(9 << 20, (Kind::Float, Device::Cpu));
    let state = vec![("large".to_string(), large.shallow_clone())];
    commit(&run, vec![save::snapshot(entries(&model(1), state), header(5, 1), 0).unwrap()], true).await;
    let loaded = load::best(&run, &Part::ALL, |_| ()).await.unwrap().unwrap();
    assert!(loaded.optimizer_tensors()["large"].equal(&large));
}

#[tokio::test]
async fn averaged_weights_are_what_a_command_opens() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(dir.path());
    let model = model(1);
    let ema = crate::ema::Ema::new(configs::Ema { decay: 0.9 }, &model).unwrap();
    let name = "blocks.6.proj.bias";
    let weight = model.tensors().into_iter().find(|t| t.name == name).unwrap().tensor;
    let _ = weight.detach().fill_(1.0);
    ema.update().unwrap();
    let averaged = |t: &Tensor| (t.double_value(&[0]) - 0.1).abs() < 1e-6;
    {
        let _swapped = ema.swap_in().unwrap();
        assert!(averaged(&weight));
    }
    assert_eq!(weight.double_value(&[0]), 1.0, "the model's own weights are back");

    let mut all = entries(&model, vec![("step".into(), Tensor::from(1i64))]);
    all.extend(Entry::of_part(Part::Ema, ema.state()));
    commit(&run, vec![save::snapshot(all, header(5, 1), 0).unwrap()], true).await;
    let resumed = load::best(&run, &Part::ALL, |_| ()).await.unwrap().unwrap();
    assert_eq!(resumed.model_tensors()[name].double_value(&[0]), 1.0);
    let (_, parts) = resumed.into_parts();
    ema.restart().unwrap();
    ema.load(parts.ema).unwrap();
    assert!(ema.state().iter().any(|(n, t)| n == name && averaged(t)));
    let opened = load::open(&run, |_| ()).await.unwrap();
    assert!(averaged(&opened.model_tensors()[name]));
    assert_eq!(opened.model_tensors().len(), model.state_dict().len());
}
