//! Checkpoints on a real S3 server: each byte loaded once, looked after, and stores that cannot commit.
#![allow(clippy::unwrap_used)]

use object_store::{MultipartUpload, ObjectStoreExt};
use serde_json::Value;
use std::process::Command;
use storage::{Location, PutOutcome};
use tests::{
    Said, check_refused,
    job::Job,
    marey,
    proxy::{Proxy, Rule},
    small::{Fixture, SWIN},
};
use xtask::s3::Server;

const RUN: &str = "s3://marey/runs/a";

/// A dataset on disk, and a run on S3 behind a proxy that counts.
struct Bench {
    fixture: Fixture,
    server: Server,
    proxy: Proxy,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(folder.path(), "marey").unwrap();
        let proxy = Proxy::start(&server.endpoint(), 1, vec![]).unwrap();
        Self { fixture: Fixture::new(), server, proxy, _folder: folder }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = marey(args);
        command.envs(self.server.env()).env("AWS_ENDPOINT_URL", self.proxy.endpoint());
        command
    }

    fn said(&self, args: &[&str]) -> Said {
        self.command(args).output().unwrap().into()
    }

    /// `marey train` on two workers up to a step.
    fn train(&self, steps: u64, more: &[&str]) -> Command {
        let config = self.fixture.config("job.toml", SWIN);
        let steps = format!("train.max_steps={steps}");
        let config = config.to_str().unwrap();
        let mut args = vec!["train", config, "--workers", "2", "--run", RUN, "--set", self.fixture.data()];
        args.extend(["--set", &steps, "--set", "checkpoint.every_steps=5"]);
        args.extend(more);
        self.command(&args)
    }

    fn list(&self) -> Vec<Value> {
        let said = self.said(&["checkpoints", "list", RUN, "--json"]);
        assert_eq!(said.code, 0, "{}", said.stderr);
        serde_json::from_str(&said.stdout).unwrap()
    }

    fn steps(&self) -> Vec<u64> {
        self.list().iter().map(|c| c["step"].as_u64().unwrap()).collect()
    }
}

#[test]
fn a_job_reads_each_byte_of_its_checkpoint_once() {
    let bench = Bench::new();
    Job::start(bench.train(20, &["--set", "checkpoint.keep=2", "--set", "checkpoint.keep_every=10"]))
        .finish();
    assert_eq!(bench.steps(), [10, 15, 20]);
    let newest = bench.list().pop().unwrap();
    assert!(newest["whole"] == true && newest["world_size"] == 2 && newest["top1"].is_f64(), "{newest}");
    let said = bench.said(&["checkpoints", "verify", RUN]);
    assert!(said.code == 0 && said.stdout.matches("verified").count() == 3, "{}", said.stdout);

    bench.proxy.take_counts();
    // Nothing is to be deleted: the coordinator would first read the newest back.
    let said = Job::start(bench.train(21, &["--set", "checkpoint.keep=100"])).finish();
    assert!(said.contains("resumed from the checkpoint of step 20"), "{said}");
    // Journal, manifests, metrics and configuration are small beside the checkpoint, which two workers loaded.
    let (read, bytes) = (bench.proxy.counts().bytes, newest["bytes"].as_u64().unwrap());
    assert!(read >= bytes && read < bytes + bytes / 2, "{read} bytes were read for a checkpoint of {bytes}");

    let newest = bench.steps().pop().unwrap().to_string();
    let args = ["checkpoints", "rm", RUN, &newest];
    check_refused(&args, bench.said(&args), &["newest whole checkpoint", "--force"]);
    assert_eq!(bench.said(&["checkpoints", "rm", RUN, &newest, "--force"]).code, 0);
    assert!(!bench.steps().contains(&21));
}

#[test]
fn a_store_without_put_if_absent_is_refused_unless_there_is_one_writer() {
    let bench = Bench::new();
    bench.proxy.set_rules(vec!["PUT * 1 blind".parse().unwrap()]);
    let said: Said = bench.train(5, &[]).output().unwrap().into();
    check_refused(&["train"], said, &["put-if-absent", "--single-writer"]);
    Job::start(bench.train(5, &["--single-writer"])).finish();
    assert_eq!(bench.steps(), [5]);
}

/// S3 answers 409 also where another request for the key was under way, and nothing is there after all.
#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_over_nothing_is_no_commit_lost() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "marey").unwrap();
    let proxy = Proxy::start(&server.endpoint(), 1, vec![]).unwrap();
    let mut env = server.env();
    env.retain(|(name, _)| *name != "AWS_ENDPOINT_URL");
    env.push(("AWS_ENDPOINT_URL", proxy.endpoint()));
    let run = Location::parse_with("s3://marey/runs/x", &env).unwrap();
    let conflicts = |n| vec!["PUT * 1 answer 409".parse::<Rule>().unwrap().at_most(n)];
    proxy.set_rules(conflicts(2));
    assert_eq!(run.put_if_absent("a", b"1".to_vec()).await.unwrap(), PutOutcome::Created);
    proxy.set_rules(conflicts(1));
    assert_eq!(run.put_if_absent("a", b"2".to_vec()).await.unwrap(), PutOutcome::Exists);
    assert_eq!(run.get("a").await.unwrap(), b"1"[..]);
    // Worth another attempt later: never the end of a job.
    proxy.set_rules(conflicts(99));
    assert!(run.put_if_absent("b", b"1".to_vec()).await.unwrap_err().is_passing());
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_uploads_are_found_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "marey").unwrap();
    let run = Location::parse_with("s3://marey/runs/x", &server.env()).unwrap();
    let begin = async |key: &str| {
        let mut upload = run.store().put_multipart(&run.key(key)).await.unwrap();
        upload.put_part(vec![1u8; 5 << 20].into()).await.unwrap();
        // Its writer is killed here.
    };
    for key in ["checkpoints/step-1/a", "checkpoints/step-1/b", "checkpoints/step-2/a", "other/a"] {
        begin(key).await;
    }
    run.put("checkpoints/step-1/c", vec![1u8]).await.unwrap();
    let old = |key: &str| key.starts_with("checkpoints/step-1/");
    assert_eq!(run.remove_unfinished("checkpoints", old).await.unwrap(), 2);
    assert_eq!(run.remove_unfinished("checkpoints", old).await.unwrap(), 0);
    assert_eq!(run.remove_unfinished("", |_| true).await.unwrap(), 2);
    assert_eq!(run.list("checkpoints").await.unwrap().len(), 1, "whole objects stay");
}
