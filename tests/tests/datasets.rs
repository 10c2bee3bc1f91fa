//! One list ingested in parts into a real object store, and datasets made of datasets there.

use serde_json::Value;
use std::path::Path;
use tests::{Said, check_refused, data, marey};
use xtask::s3::Server;

struct Store {
    server: Server,
}

impl Store {
    fn said(&self, args: &[&str]) -> Said {
        marey(args).envs(self.server.env()).output().expect("marey starts").into()
    }

    fn ok(&self, args: &[&str]) -> String {
        let said = self.said(args);
        assert_eq!(said.code, 0, "marey {args:?}\n{}\n{}", said.stdout, said.stderr);
        said.stdout
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).expect("JSON")
    }

    fn check_whole(&self, url: &str) {
        assert!(self.ok(&["verify", url]).contains("all is whole"));
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn parts_and_tools_on_object_storage() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(&dir.path().join("s3"), "marey").expect("an S3 server");
    let store = Store { server };
    let videos = data::motion_videos(dir.path(), 12, 4);
    let labels = videos.join("labels.csv");
    let ingest = |out: &str, more: &[&str]| {
        let mut args = vec!["ingest", text(&videos), "--labels", text(&labels), "--out", out, "--jobs", "1"];
        args.push("--no-progress");
        args.extend(more);
        marey(&args).envs(store.server.env()).spawn().expect("marey starts")
    };
    assert!(ingest("s3://marey/whole", &[]).wait().expect("it ends").success());

    // The first part by two machines at once; the third one comes late.
    let now = ["1/3", "1/3", "2/3"].map(|part| ingest("s3://marey/parts", &["--part", part]));
    for mut machine in now {
        assert!(machine.wait().expect("it ends").success());
    }
    let finish = ["ingest", "--finish", "s3://marey/parts"];
    check_refused(&finish, store.said(&finish), &["s3://marey/parts", "3/3"]);
    assert!(ingest("s3://marey/parts", &["--part", "3/3"]).wait().expect("it ends").success());
    store.ok(&finish);
    assert!(store.ok(&finish).contains("complete already"));
    store.check_whole("s3://marey/parts");
    let stats = |url: &str| store.json(&["dataset", "stats", url, "--json"]);
    let (whole, parts) = (stats("s3://marey/whole"), stats("s3://marey/parts"));
    for what in ["all", "splits", "labels", "clip_frames", "sources"] {
        assert_eq!(whole[what], parts[what], "{what}");
    }

    // Split inside the store and out of it, and merged back.
    let split = ["--fractions", "train=0.5,test=0.5", "--stratify", "--no-progress"];
    let here = ["dataset", "split", "s3://marey/parts", "--out", "s3://marey/split"];
    store.ok(&[&here[..], &split].concat());
    store.check_whole("s3://marey/split");
    let local = dir.path().join("split");
    let there = ["dataset", "split", "s3://marey/parts", "--out", text(&local)];
    store.ok(&[&there[..], &split].concat());
    store.check_whole(text(&local));
    let (a, b) = (stats("s3://marey/split"), stats(text(&local)));
    assert_eq!((&a["splits"], &a["labels"]), (&b["splits"], &b["labels"]));
    assert_eq!(a["splits"]["test"]["clips"], 8);

    let merge = ["dataset", "merge", "s3://marey/whole", text(&local), "--out", "s3://marey/merged"];
    let said = store.said(&merge);
    check_refused(&merge, said, &["share the clips", "--prefix-ids"]);
    store.ok(&[&merge[..], &["--prefix-ids"]].concat());
    store.check_whole("s3://marey/merged");
    let merged = stats("s3://marey/merged");
    assert_eq!(merged["all"]["clips"], 32);
    assert_eq!(merged["duplicates"]["clips"], 16);
}
