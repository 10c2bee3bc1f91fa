//! The simulator against real streams, and against orders whose quality is known.

use super::quality::entropy;
use super::*;
use crate::cache::Cache;
use crate::format::{ClipIndex, Codec};
use crate::plan::{Plan, PlanSpec};
use crate::sampling::Scale;
use crate::stream::{Sources, Stream, StreamOptions};
use crate::testing::write_dataset;
use storage::{Location, RequestPolicy};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Windows of 6 frames, 3 apart, in global batches of 8.
const CONFIG: &str = r#"
seed = 3
[data]
url = "set by the test"
lanes = 8
frames = 6
sampling_rate = 3
augment = { crop = 16, scale = { kind = "short_side", min = 16, max = 22 }, flip = 0.5 }
eval = { short_side = 16, crop = 16 }
[model]
arch = "resnet3d"
kind = "c2d"
depth = 18
[train]
epochs = 4
global_batch = 8
[optimizer]
kind = "sgd"
lr = 0.01
"#;

/// 45 clips of 3 to 90 frames in a folder, 36 of them for training.
fn write(folder: &TempDir) -> String {
    let clips: Vec<_> = (0..45).map(|i| (3 + i * 17 % 88, 20 + i % 9, 30 - i % 7)).collect();
    write_dataset(folder.path(), Codec::Raw, &clips).url().into()
}

/// Four epochs of a job on them, as the configuration says with these overrides.
fn job(folder: &TempDir, runtime: &Runtime, more: &[String]) -> Job {
    let url = write(folder);
    let set = [&[format!("data.url={url}")], more].concat();
    let config = Config::parse("the test's", CONFIG, &set).unwrap();
    let location = Location::parse(&url).unwrap();
    let dataset = Arc::new(runtime.block_on(Dataset::open(&location)).unwrap());
    runtime.block_on(Job::open(&config, &dataset, 4)).unwrap()
}

/// The counters of real streams, by node and epoch; every rank of a node has a hold of its own on its cache.
fn real(job: &Job, runtime: &Runtime, cluster: &Cluster) -> Vec<Vec<Counts>> {
    let steps = job.set.plan.steps_per_epoch(0);
    let node = |number: u32| {
        let folder = tempfile::tempdir().unwrap();
        let ranks =
            number * cluster.workers_per_node..cluster.workers.min((number + 1) * cluster.workers_per_node);
        let digest = job.set.sources.digest();
        let open = |_| Arc::new(Cache::open(folder.path(), cluster.cache, &digest).unwrap());
        let caches: Vec<Arc<Cache>> = ranks.clone().map(open).collect();
        let epoch = |epoch: u64| {
            let mut counts = Counts::default();
            let before: Vec<_> = caches.iter().map(|c| c.stats()).collect();
            let options = |cache: &Arc<Cache>| StreamOptions {
                requests: RequestPolicy { at_once: 1, hedge_share: 0.0, ..RequestPolicy::default() },
                cache: Some(cache.clone()),
                ..StreamOptions::new(runtime.handle().clone(), 1, 0)
            };
            for (rank, cache) in ranks.clone().zip(&caches) {
                let end = (epoch + 1) * steps;
                let pass = TrainPass { start: (epoch, 0), end, ..job.pass(rank, cluster.workers) };
                let mut stream = Stream::train_of(job.set.sources.clone(), pass, &options(cache)).unwrap();
                while let Some(batch) = stream.next().unwrap() {
                    counts.views += batch.labels.len() as u64;
                    cache.flush();
                }
                let stats = stream.stats();
                (counts.requests, counts.bytes) =
                    (counts.requests + stats.requests, counts.bytes + stats.bytes);
            }
            for (cache, before) in caches.iter().zip(before) {
                let now = cache.stats();
                counts.hits += now.hits - before.hits;
                counts.misses += now.misses - before.misses;
                counts.hit_bytes += now.hit_bytes - before.hit_bytes;
                counts.written_bytes += now.written_bytes - before.written_bytes;
                counts.evicted += now.evicted - before.evicted;
            }
            counts
        };
        (0..job.epochs).map(epoch).collect()
    };
    (0..cluster.workers.div_ceil(cluster.workers_per_node)).map(node).collect()
}

#[test]
fn a_real_run_counts_what_the_simulator_says() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let job = job(&folder, &runtime, &[]);
    for (workers, workers_per_node) in [(1, 1), (3, 1), (4, 2), (8, 8)] {
        for cache in [0, 64 << 20] {
            let cluster = Cluster { workers, workers_per_node, cache };
            let said = simulate(&job, &cluster).unwrap();
            assert_eq!(said, real(&job, &runtime, &cluster), "{cluster:?}");
            let hits = |epoch: usize| said.iter().map(|node| node[epoch].hits).sum::<u64>();
            assert_eq!(hits(0), 0);
            assert_eq!(hits(3) > 0, cache > 0);
        }
    }
}

#[test]
fn what_a_job_leaves_out_and_balances_is_counted_as_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let all = job(&folder, &runtime, &[]).set;
    let clip = |place: usize| all.sources.clip(all.clips[place]);
    // Those that no class has, and two more.
    let listed = (0..all.clips.len()).filter(|p| clip(*p).label_ids().is_empty() || [4, 9].contains(p));
    let ids: Vec<&str> = listed.map(|place| clip(place).clip_id).collect();
    assert!(ids.len() > 5 && ids.len() < 20, "{ids:?}");
    let list = folder.path().join("left-out.txt");
    std::fs::write(&list, ids.join("\n")).unwrap();
    let quarantine = format!("data.quarantine={}", list.display());
    let balanced = ["data.sampling=class_balanced", "data.epoch_clips=50"].map(String::from);
    let left_out = job(&folder, &runtime, std::slice::from_ref(&quarantine));
    let balanced = job(&folder, &runtime, &[&[quarantine][..], &balanced].concat());
    for (job, views) in [(&left_out, all.clips.len() - ids.len()), (&balanced, 50)] {
        for (workers, workers_per_node, cache) in [(1, 1, 0), (3, 2, 0), (1, 1, 64 << 20), (8, 1, 64 << 20)] {
            let cluster = Cluster { workers, workers_per_node, cache };
            let (said, real) = (simulate(job, &cluster).unwrap(), real(job, &runtime, &cluster));
            if views == 50 {
                assert!(differ_by_repeats(&said, &real), "{cluster:?}: {said:?} {real:?}");
            } else {
                assert_eq!(said, real, "{cluster:?}");
            }
            for epoch in 0..4 {
                assert_eq!(said.iter().map(|node| node[epoch].views).sum::<u64>(), views as u64);
            }
        }
        assert!(quality(job).clips > 0.8, "{:?}", quality(job));
    }
}

/// A balanced epoch may show a clip twice in a row. Whether the second look finds it in the cache depends on when the
/// first one's write is done: it may be fetched twice, but is written once all the same.
fn differ_by_repeats(said: &[Vec<Counts>], real: &[Vec<Counts>]) -> bool {
    let exact = |c: &Counts| [c.views, c.hits + c.misses, c.written_bytes, c.evicted];
    let pairs = || said.iter().flatten().zip(real.iter().flatten());
    said.len() == real.len()
        && pairs().count() == real.iter().flatten().count()
        && pairs().all(|(s, r)| exact(s) == exact(r))
        && pairs().all(|(s, r)| s.requests.abs_diff(r.requests) <= 2 + s.views / 10)
}

#[test]
fn a_mixture_is_counted_as_it_is_read() {
    let [folder, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let runtime = Runtime::new().unwrap();
    let extra: Vec<_> = (0..20).map(|i| (5 + i * 13 % 70, 20, 20)).collect();
    let extra = write_dataset(other.path(), Codec::Jpeg, &extra);
    let parts = format!(
        "data.mixture=[{{ url = {:?}, weight = 3.0 }}, {{ url = {:?}, weight = 1.0, split = \"val\" }}]",
        folder.path().display().to_string(),
        extra.url()
    );
    let job = job(&folder, &runtime, &[parts, "data.epoch_clips=28".into()]);
    assert_eq!(job.set.notes.len(), 2);
    for (workers, workers_per_node) in [(1, 1), (3, 1), (4, 2)] {
        // A mixture goes without a cache.
        let cluster = Cluster { workers, workers_per_node, cache: 64 << 20 };
        let asked = |nodes: Vec<Vec<Counts>>| -> Vec<Vec<[u64; 4]>> {
            let of = |c: &Counts| [c.views, c.requests, c.bytes, c.hits];
            nodes.iter().map(|node| node.iter().map(of).collect()).collect()
        };
        let said = asked(simulate(&job, &cluster).unwrap());
        assert_eq!(said, asked(real(&job, &runtime, &cluster)), "{cluster:?}");
        assert_eq!(said.iter().map(|node| node[0][0]).sum::<u64>(), 28);
    }
    assert!(quality(&job).files > 0.8, "{:?}", quality(&job));
}

#[test]
fn eight_workers_then_two_then_eight_see_the_same_batches_and_one_cache() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    // A window over the whole clip: every epoch shows the same runs.
    let clip = ClipSpec { frames: 6, sampling_rate: 16, fps: None, single_frame: false };
    let job = Job { clip, ..job(&folder, &runtime, &[]) };
    let steps = job.set.plan.steps_per_epoch(0);
    let shared = tempfile::tempdir().unwrap();
    let stream = |rank, world, part: std::ops::Range<u64>, cache| {
        let start = (part.start / steps, part.start % steps);
        let pass = TrainPass { start, end: part.end, ..job.pass(rank, world) };
        let options = StreamOptions { cache, ..StreamOptions::new(runtime.handle().clone(), 1, 1 << 20) };
        Stream::train_of(job.set.sources.clone(), pass, &options).unwrap()
    };
    let mut alone = stream(0, 1, 0..2 * steps, None);
    let mut shown = Vec::new();
    let mut requests = Vec::new();
    for (world, part) in [(8, 0..2), (2, 2..steps), (8, steps..2 * steps)] {
        // As after a restart of every process: each opens the folder anew.
        let digest = job.set.sources.digest();
        let open = |_| Arc::new(Cache::open(shared.path(), 64 << 20, &digest).unwrap());
        let caches: Vec<Arc<Cache>> = (0..world).map(open).collect();
        let ranks =
            caches.iter().zip(0..).map(|(c, rank)| stream(rank, world, part.clone(), Some(c.clone())));
        let mut ranks: Vec<Stream> = ranks.collect();
        for step in part {
            let whole = alone.next().unwrap().unwrap();
            let batches: Vec<_> = ranks.iter_mut().map(|r| r.next().unwrap().unwrap()).collect();
            let joined: Vec<u8> = batches.iter().flat_map(|b| b.frames.clone()).collect();
            assert!(joined == whole.frames, "step {step} of {world} workers");
            assert_eq!(batches.iter().flat_map(|b| b.positions.clone()).collect::<Vec<_>>(), whole.positions);
            shown.extend(whole.clips);
            caches.iter().for_each(|c| c.flush());
        }
        requests.push(ranks.iter().map(|r| r.stats().requests).sum::<u64>());
    }
    for epoch in shown.chunks(job.set.clips.len()) {
        let mut clips = epoch.to_vec();
        clips.sort_unstable();
        assert_eq!(clips, (0..job.set.clips.len() as u32).collect::<Vec<_>>());
    }
    assert_eq!(requests[0] + requests[1], alone.stats().requests / 2);
    assert_eq!(requests[2], 0, "the second epoch asks the store nothing");
}

#[test]
fn a_cache_of_half_the_data_hits_half_of_it() {
    let spec = Synthetic { clips: 2000, frames: 16, fps: 30.0, frame_bytes: 22_000, file_bytes: 8 << 20 };
    let dataset = Arc::new(synthetic(&spec, "train").unwrap());
    let clips = dataset.clips_of("train").unwrap();
    let plan = |lanes, clips: &[ClipIndex]| PlanSpec {
        dataset_digest: dataset.digest.clone(),
        seed: 1,
        clips: clips.len() as u64,
        lanes,
        global_batch: 8,
        ..PlanSpec::default()
    };
    let plan = Arc::new(Plan::new(plan(8, &clips)).unwrap());
    let job = Job {
        set: TrainSet { sources: Sources::from(dataset.clone()), clips, plan, notes: vec![] },
        clip: ClipSpec { frames: 8, sampling_rate: 2, fps: None, single_frame: false },
        view: View::Train {
            crop: 16,
            scale: Scale::ShortSide { min: 16, max: 22 },
            flip: 0.5,
            seed: 1,
            repeats: 1,
            augment: Augment::NONE,
        },
        epochs: 5,
    };
    let half = dataset.manifest.totals.bytes / 2;
    for (workers, share) in [(1, 0.5), (2, 1.0)] {
        let cluster = Cluster { workers, workers_per_node: 1, cache: half + half / 20 };
        for node in simulate(&job, &cluster).unwrap() {
            let rates: Vec<f64> = node.iter().map(Counts::hit_rate).collect();
            assert_eq!(rates[0], 0.0);
            assert!(rates[1..].iter().all(|r| (r - share).abs() < 0.05), "{workers} workers: {rates:?}");
        }
    }
    // Workers beyond the lanes have nothing to do.
    let e = simulate(&job, &Cluster { workers: 9, workers_per_node: 1, cache: 0 }).unwrap_err();
    assert!(e.is_usage() && e.to_string().contains("data.lanes is 8"), "{e}");
    let shuffled = quality(&job);
    assert!(shuffled.clips > 0.98 && shuffled.files > 0.98, "{shuffled:?}");
}

#[test]
fn an_order_without_distances_has_no_entropy() {
    assert_eq!(entropy(&(0..100).collect::<Vec<u32>>()), 0.0);
    assert_eq!(entropy(&[5]), 0.0);
    // Distances 1, 2, 1, 2: one bit.
    assert!((entropy(&[0, 1, 3, 4, 6]) - 2f64.ln()).abs() < 1e-12);
}
