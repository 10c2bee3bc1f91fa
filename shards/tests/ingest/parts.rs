//! One list ingested by three machines, which here are processes, one of them killed and one run twice at once.

use super::*;
use std::process::Child;

const OPTIONS: [&str; 7] = ["--clip-seconds", "1", "--codec", "raw", "--file-size", "1MiB", "--no-progress"];

impl Bench {
    /// 7 videos of 3 clips each, and one that cannot be read.
    fn noisy_set(&self) {
        for i in 0..7 {
            let noise = "nullsrc=s=160x120:r=25:d=3,geq=random(";
            self.make(&format!("{i}.mkv"), &format!("-f lavfi -i {noise}{i})*255:128:128 -c:v mjpeg -q:v 2"));
        }
        std::fs::write(self.video("3b.mp4"), "no video").unwrap();
        let rows =
            (0..7).map(|i| format!("{i}.mkv,{},{}\n", ["run", "walk"][i % 2], ["train", "val"][i / 5]));
        let rows: String = rows.collect();
        std::fs::write(self.labels(), format!("path,label,split\n{rows}3b.mp4,run,val\n")).unwrap();
    }

    fn labels(&self) -> PathBuf {
        self.dir.path().join("labels.csv")
    }

    fn program(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_marey-shards"));
        command.arg("ingest").args(args);
        command
    }

    fn part(&self, out: &str, part: &str) -> Command {
        let out = self.out(out);
        let mut command = self.program(&OPTIONS);
        command.arg(self.dir.path().join("videos")).arg("--labels").arg(self.labels());
        command.args(["--out", out.url(), "--part", part]);
        command
    }

    fn finish(&self, out: &str) -> Told {
        told(self.program(&["--finish", self.out(out).url()]))
    }

    fn exists(&self, path: &str) -> bool {
        self.dir.path().join(path).exists()
    }

    /// Waits for an object while a process runs.
    fn wait_for(&self, path: &str, child: &mut Child) {
        while !self.exists(path) {
            assert!(child.try_wait().unwrap().is_none(), "it ended before {path} was there");
            std::thread::yield_now();
        }
    }
}

type Told = (Option<i32>, String);

fn told(mut command: Command) -> Told {
    let o = command.output().unwrap();
    let text = [o.stdout, o.stderr].concat();
    (o.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// What training sees of a clip: all but the place of its payload.
type Seen = (String, String, Vec<i32>, f64, f64, u32, Bytes);

fn seen(b: &Bench, out: &str) -> Vec<Seen> {
    let o = b.open(out);
    let clip = |c: Clip<'_>| {
        let range = c.offset..c.offset + c.bytes;
        let payload = block_on(o.dataset.location.get_range(o.dataset.file_key(c), range)).unwrap();
        let text = (c.clip_id.to_string(), format!("{} {:?}", c.split, c.run_crcs));
        (text.0, text.1, c.labels.to_vec(), c.start_s, c.fps, c.num_frames, payload)
    };
    o.dataset.clips.iter().map(clip).collect()
}

#[test]
fn three_parts_are_the_dataset_that_one_ingest_makes() {
    let b = Bench::new();
    b.noisy_set();
    let sources = Sources { labels: Some(b.labels()), ..b.sources() };
    let options = Options { clip_seconds: Some(1.0), file_size: 1 << 20, ..raw() };
    b.ingest(&sources, &options, "whole").unwrap();

    let (code, text) = b.finish("parts");
    assert!(code == Some(2) && text.contains("none was begun there"), "{text}");

    // The second is killed after its first file.
    let mut second = b.part("parts", "2/3").spawn().unwrap();
    b.wait_for("parts/ingest/00002/00000.json", &mut second);
    second.kill().unwrap();
    second.wait().unwrap();
    assert!(!b.exists("parts/ingest/00002/done.json"));

    // The first is done by two machines at once.
    let twins = [b.part("parts", "1/3").spawn().unwrap(), b.part("parts", "1/3").spawn().unwrap()];
    for mut twin in twins {
        assert!(twin.wait().unwrap().success());
    }
    let (code, text) = b.finish("parts");
    assert!(code == Some(2) && text.contains("not through: 2/3, 3/3"), "{text}");
    let (code, text) = told(b.part("parts", "1/3"));
    assert!(code == Some(0) && text.contains("part 1/3 is through"), "{text}");

    // Other arguments are refused, and nothing is lost.
    let refused = |mut command: Command, more: &[&str], part: &str| {
        command.args(more);
        let (code, text) = told(command);
        assert!(code == Some(2) && text.contains(part), "{text}");
    };
    refused(b.part("parts", "2/4"), &[], "it was in 3 parts, now 4");
    refused(b.part("parts", "2/3"), &["--short-side", "64"], "short_side was 256, now 64");
    refused(
        b.part("parts", "2/3"),
        &["--split", "x", "--layout", "csv", "--fps", "5"],
        "fps was null, now 5",
    );
    for nonsense in ["0/3", "4/3", "2", "1/0", "x/y"] {
        refused(b.part("parts", nonsense), &[], "write i/n");
    }
    std::fs::rename(b.video("6.mkv"), b.dir.path().join("aside")).unwrap();
    refused(b.part("parts", "3/3"), &["--allow-unlabelled"], "there is no file 6.mkv");
    std::fs::rename(b.dir.path().join("aside"), b.video("6.mkv")).unwrap();
    let list = std::fs::read_to_string(b.labels()).unwrap();
    std::fs::write(b.labels(), list.replace("0.mkv,run", "0.mkv,walk")).unwrap();
    refused(b.part("parts", "3/3"), &[], "its videos or labels were others");
    std::fs::write(b.labels(), list).unwrap();

    let (code, text) = told(b.part("parts", "3/3"));
    assert!(code == Some(0), "{text}");
    let (code, text) = told(b.part("parts", "2/3"));
    assert!(code == Some(0), "{text}");
    assert!(!b.exists("parts/dataset.json"));

    // Finishing, killed before its last word: the same again.
    let journal = || b.objects("parts").into_iter().filter(|(k, _)| k.starts_with("ingest/"));
    let kept: Vec<_> = journal().collect();
    let restore = || {
        for (key, bytes) in &kept {
            block_on(b.out("parts").put(key, bytes.clone())).unwrap();
        }
    };
    let (code, text) = b.finish("parts");
    assert!(code == Some(0) && text.contains("21 clips"), "{text}");
    let first = b.objects("parts");
    assert!(!first.keys().any(|k| k.starts_with("ingest/")), "{:?}", first.keys());
    std::fs::remove_file(b.dir.path().join("parts/dataset.json")).unwrap();
    restore();
    assert_eq!(b.finish("parts").0, Some(0));
    assert!(first == b.objects("parts"));

    // Against the whole: the same clips, every byte of them, in the same order.
    assert_eq!(block_on(verify(&b.out("parts"), &mut |_, _| ())).unwrap().damage, [""; 0]);
    let (whole, parts) = (seen(&b, "whole"), seen(&b, "parts"));
    assert_eq!(whole.len(), 21);
    assert!(whole == parts);
    let (w, p) = (b.open("whole"), b.open("parts"));
    assert_eq!(w.ledger, p.ledger);
    assert_eq!(w.dataset.manifest.labels, p.dataset.manifest.labels);
    assert_eq!(w.dataset.manifest.ingest, p.dataset.manifest.ingest);

    // All is done: every command says so, and clears what a straggler left.
    restore();
    let (code, text) = b.finish("parts");
    assert!(code == Some(0) && text.contains("complete already"), "{text}");
    assert!(first == b.objects("parts"));
    let (code, text) = told(b.part("parts", "2/3"));
    assert!(code == Some(0) && text.contains("complete already"), "{text}");
    assert!(b.ingest(&sources, &options, "parts").unwrap().already);
}

#[test]
fn a_part_may_be_empty_and_a_lost_file_is_named() {
    let b = Bench::new();
    b.make("a.mp4", &format!("{} -pix_fmt yuv420p", halves("64x64", 1.0, 10)));
    std::fs::write(b.labels(), "path,label\na.mp4,x\n").unwrap();
    for part in ["1/2", "2/2"] {
        let (code, text) = told(b.part("out", part));
        assert!(code == Some(0), "{text}");
    }
    let key = b.objects("out").into_keys().find(|k| k.starts_with("data/")).unwrap();
    let file = b.dir.path().join("out").join(&key);
    std::fs::rename(&file, b.dir.path().join("aside")).unwrap();
    let (code, text) = b.finish("out");
    assert!(code == Some(1) && text.contains(&key) && text.contains("it is gone"), "{text}");
    std::fs::rename(b.dir.path().join("aside"), &file).unwrap();
    assert_eq!(b.finish("out").0, Some(0));
    assert_eq!(b.open("out").dataset.clips.len(), 1);
}
