//! Ingest from real video files to a checked dataset: what FFmpeg's program makes here, and the
//! edge-case videos where they are at hand.
#![cfg(feature = "ingest")]
// Helpers outside of test functions may unwrap here too.
#![allow(clippy::unwrap_used)]

mod images;
mod parts;

use bytes::Bytes;
use shards::{
    Error, Result,
    format::{Clip, Codec, Dataset, split_run},
    ingest::{Options, Sources, Summary, ingest},
    inspect::{contact_sheet, inspect},
    ledger::{Action, LedgerEntry, decode_ledger},
    verify::verify,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};
use storage::Location;
use tempfile::TempDir;

/// A folder of videos beside a place for datasets.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("videos")).unwrap();
        Self { dir }
    }

    fn video(&self, name: &str) -> PathBuf {
        self.dir.path().join("videos").join(name)
    }

    /// Runs `ffmpeg` with these arguments into a video of that name.
    fn make(&self, name: &str, args: &str) -> PathBuf {
        let path = self.video(name);
        let out = Command::new("ffmpeg")
            .args(["-v", "error", "-y"])
            .args(args.split_whitespace())
            .arg(&path)
            .output()
            .expect("these tests need the ffmpeg program");
        assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        path
    }

    fn sources(&self) -> Sources {
        let videos = self.dir.path().join("videos");
        Sources { videos, split: "train".into(), fold: 1, ..Sources::default() }
    }

    fn out(&self, name: &str) -> Location {
        Location::parse(self.dir.path().join(name).to_str().unwrap()).unwrap()
    }

    fn run(&self, out: &str, options: &Options) -> Result<Summary> {
        self.ingest(&self.sources(), options, out)
    }

    fn ingest(&self, sources: &Sources, options: &Options, out: &str) -> Result<Summary> {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        ingest(&runtime, &sources.find()?, options, &self.out(out), 2, true)
    }

    fn open(&self, out: &str) -> Opened {
        block_on(async {
            let location = self.out(out);
            let dataset = Dataset::open(&location).await.unwrap();
            let ledger = decode_ledger(location.get("ledger.parquet").await.unwrap()).unwrap();
            Opened { dataset, ledger }
        })
    }

    /// Every object of a dataset.
    fn objects(&self, out: &str) -> BTreeMap<String, Bytes> {
        block_on(async {
            let location = self.out(out);
            let mut all = BTreeMap::new();
            for o in location.list("").await.unwrap() {
                all.insert(o.key.clone(), location.get(&o.key).await.unwrap());
            }
            all
        })
    }
}

struct Opened {
    dataset: Dataset,
    ledger: Vec<LedgerEntry>,
}

impl Opened {
    fn clip(&self, id: &str) -> Clip<'_> {
        let ids: Vec<_> = self.dataset.clips.iter().map(|c| c.clip_id).collect();
        self.dataset
            .clips
            .iter()
            .find(|c| c.clip_id == id)
            .unwrap_or_else(|| panic!("{id} is not in {ids:?}"))
    }

    /// One frame, RGB8 (H, W, 3).
    fn frame(&self, id: &str, frame: u32) -> Vec<u8> {
        let clip = self.clip(id);
        let key = self.dataset.file_key(clip);
        let bytes =
            block_on(self.dataset.location.get_range(key, clip.offset..clip.offset + clip.bytes)).unwrap();
        let codec = self.dataset.manifest.codec;
        let parts = split_run(codec, &bytes, clip.num_frames, clip.width, clip.height).unwrap();
        let stored = &bytes[parts[frame as usize].clone()];
        match codec {
            Codec::Raw => stored.to_vec(),
            Codec::Jpeg => turbojpeg::decompress(stored, turbojpeg::PixelFormat::RGB).unwrap().pixels,
        }
    }

    /// The colour at a place given in parts of width and height.
    fn colour(&self, id: &str, frame: u32, x: f64, y: f64) -> [u8; 3] {
        let clip = self.clip(id);
        let (x, y) = ((x * f64::from(clip.width)) as usize, (y * f64::from(clip.height)) as usize);
        let at = (y * clip.width as usize + x) * 3;
        self.frame(id, frame)[at..at + 3].try_into().unwrap()
    }

    fn entry(&self, source: &str) -> &LedgerEntry {
        self.ledger.iter().find(|e| e.source == source).unwrap_or_else(|| panic!("{:?}", self.ledger))
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn near(found: [u8; 3], expected: [i32; 3]) -> bool {
    found.iter().zip(expected).all(|(&f, e)| (i32::from(f) - e).abs() <= 12)
}

fn raw() -> Options {
    Options { codec: Codec::Raw, ..Options::default() }
}

/// Left half red, right half blue, of a size.
fn halves(size: &str, seconds: f64, rate: u32) -> String {
    let (w, h) = size.split_once('x').unwrap();
    format!(
        "-f lavfi -i color=red:s={size}:r={rate}:d={seconds},drawbox=x={w}/2:y=0:w={w}/2:h={h}:color=blue:t=fill"
    )
}

#[test]
fn every_kind_of_video_comes_out_upright_in_its_colours() {
    let b = Bench::new();
    b.make("plain.mp4", &format!("{} -pix_fmt yuv420p", halves("320x240", 1.0, 25)));
    b.make(
        "odd.mkv",
        &format!("{} -vf format=yuv444p,scale=321:241 -c:v libx264", halves("320x240", 0.4, 25)),
    );
    b.make("ten_bit.mp4", &format!("{} -pix_fmt yuv420p10le -c:v libx264", halves("320x240", 0.4, 25)));
    b.make("lossless_rgb.mkv", &format!("{} -pix_fmt bgr0 -c:v ffv1", halves("320x240", 0.4, 25)));
    b.make(
        "bt709_full.mp4",
        &format!(
            "{} -vf scale=out_color_matrix=bt709:out_range=full,format=yuv420p \
             -colorspace bt709 -color_range pc",
            halves("320x240", 0.4, 25)
        ),
    );
    let rotated = b.make("unturned.mp4", &format!("{} -pix_fmt yuv420p", halves("320x240", 0.4, 25)));
    std::fs::write(b.video("turned.mp4"), with_rotation(&std::fs::read(&rotated).unwrap())).unwrap();
    b.run("out", &raw()).unwrap();
    let o = b.open("out");
    let (red, blue) = ([254, 0, 0], [0, 0, 254]);
    for id in ["plain", "odd", "ten_bit", "lossless_rgb", "bt709_full", "unturned"] {
        let (left, right) = (o.colour(id, 5, 0.25, 0.5), o.colour(id, 5, 0.75, 0.5));
        assert!(near(left, red) && near(right, blue), "{id}: {left:?} {right:?}");
    }
    // A quarter turn clockwise: the left half is on top.
    let c = o.clip("turned");
    assert_eq!((c.width, c.height), (240, 320));
    let (top, bottom) = (o.colour("turned", 5, 0.5, 0.25), o.colour("turned", 5, 0.5, 0.75));
    assert!(near(top, red) && near(bottom, blue), "{top:?} {bottom:?}");
    assert_eq!((o.clip("odd").width, o.clip("odd").height), (321, 241));
    assert_eq!((o.clip("plain").num_frames, o.clip("plain").fps), (25, 25.0));
    assert!(o.ledger.is_empty(), "{:?}", o.ledger);
    assert_eq!(block_on(verify(&b.out("out"), &mut |_, _| ())).unwrap().damage, [""; 0]);
}

/// Turns the picture a quarter clockwise in the track header of an MP4 file.
fn with_rotation(mp4: &[u8]) -> Vec<u8> {
    let mut bytes = mp4.to_vec();
    let at = bytes.windows(4).position(|w| w == b"tkhd").unwrap();
    // Version 0: the matrix stands 40 bytes into the box's body.
    let matrix = at + 4 + 40;
    let turned: [i32; 9] = [0, 1 << 16, 0, -(1 << 16), 0, 0, 240 << 16, 0, 1 << 30];
    for (i, n) in turned.iter().enumerate() {
        bytes[matrix + i * 4..matrix + i * 4 + 4].copy_from_slice(&n.to_be_bytes());
    }
    bytes
}

#[test]
fn frames_are_scaled_to_the_short_side_and_pixels_squared() {
    let b = Bench::new();
    b.make("large.mp4", &format!("{} -pix_fmt yuv420p", halves("640x360", 0.2, 25)));
    b.make("square.mp4", &format!("{} -pix_fmt yuv420p", halves("200x200", 0.2, 25)));
    b.make("wide_pixels.mp4", &format!("{} -vf setsar=2/1 -pix_fmt yuv420p", halves("200x200", 0.2, 25)));
    // Only the container tells of these pixels: the pictures are copied with their own word against it.
    b.make("container_pixels.mkv", &format!("-i {} -c copy -aspect 2:1", b.video("square.mp4").display()));
    std::fs::remove_file(b.video("square.mp4")).unwrap();
    b.run("out", &Options { short_side: 180, ..Options::default() }).unwrap();
    let o = b.open("out");
    assert_eq!((o.clip("large").width, o.clip("large").height), (320, 180));
    assert_eq!((o.clip("wide_pixels").width, o.clip("wide_pixels").height), (360, 180));
    assert_eq!((o.clip("container_pixels").width, o.clip("container_pixels").height), (360, 180));
    assert!(near(o.colour("large", 0, 0.25, 0.5), [254, 0, 0]));
    let sheet = block_on(contact_sheet(&b.out("out"), "large")).unwrap();
    let mut png = png::Decoder::new(std::io::Cursor::new(sheet)).read_info().unwrap();
    let mut pixels = vec![0; png.output_buffer_size().unwrap()];
    let info = png.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height), (4 * 324 + 4, 2 * 184 + 4));
    let e = block_on(contact_sheet(&b.out("out"), "larg")).unwrap_err();
    assert!(e.is_usage() && e.to_string().contains("the nearest is large"), "{e}");
}

#[test]
fn time_is_kept_cut_and_resampled() {
    let b = Bench::new();
    // Grey grows with time: 10 frames a second for 3.3 s, then the same with every other frame gone after 1 s.
    let ramp = "-f lavfi -i color=black:s=64x64:r=10:d=3.3,format=gray,geq=lum='N*7' -c:v ffv1";
    b.make("steady.mkv", ramp);
    b.make("variable.mkv", &ramp.replace("-c:v", "-vf select='lt(t,1)+not(mod(n,2))' -vsync vfr -c:v"));
    let options = Options { clip_seconds: Some(1.0), ..raw() };
    b.run("cut", &options).unwrap();
    let o = b.open("cut");
    let ids: Vec<_> = o.dataset.clips.iter().map(|c| (c.clip_id, c.num_frames)).collect();
    assert_eq!(ids[..3], [("steady#0000", 10), ("steady#0001", 10), ("steady#0002", 10)]);
    assert_eq!(ids[3..], [("variable#0000", 10), ("variable#0001", 5), ("variable#0002", 5)]);
    assert_eq!(o.clip("steady#0002").start_s, 2.0);
    assert!((o.clip("variable#0001").fps - 5.0).abs() < 0.05);
    // 0.3 s are less than half a clip.
    assert_eq!(
        (o.entry("steady.mkv").action, o.entry("steady.mkv").reason.as_str()),
        (Action::Repaired, "tail")
    );
    let options = Options { fps: Some(5.0), ..raw() };
    b.run("slow", &options).unwrap();
    let o = b.open("slow");
    for id in ["steady", "variable"] {
        let clip = o.clip(id);
        assert_eq!(clip.fps, 5.0, "{id}");
        assert!((16..=17).contains(&clip.num_frames), "{id}: {}", clip.num_frames);
        // Tick k shows what is on at k/5 s.
        for k in [0u32, 3, 9, 15] {
            let level = i32::from(o.frame(id, k)[0]);
            assert!((level - 14 * k as i32).abs() <= 8, "{id} at {k}: {level}");
        }
    }
    b.run("fast", &Options { fps: Some(20.0), ..raw() }).unwrap();
    let o = b.open("fast");
    assert_eq!(o.clip("steady").num_frames, 66);
    assert_eq!(o.frame("steady", 40)[0], o.frame("steady", 41)[0]);
}

#[test]
fn what_cannot_be_read_goes_into_the_ledger_and_the_rest_goes_on() {
    let b = Bench::new();
    let whole = b.make(
        "whole.mp4",
        &format!("{} -pix_fmt yuv420p -g 10 -movflags faststart", halves("320x240", 4.0, 25)),
    );
    b.make("silent.mkv", "-f lavfi -i sine=d=1");
    std::fs::write(b.video("text.mp4"), "This is no video.\n").unwrap();
    std::fs::write(b.video("empty.mp4"), "").unwrap();
    std::fs::write(b.video("noise.avi"), (0..50_000u32).map(|i| ((i * 7919) >> 3) as u8).collect::<Vec<_>>())
        .unwrap();
    let bytes = std::fs::read(&whole).unwrap();
    std::fs::write(b.video("truncated.mp4"), &bytes[..bytes.len() * 6 / 10]).unwrap();
    let mut broken = bytes.clone();
    let middle = bytes.len() / 2;
    broken[middle..middle + 400].fill(0x55);
    std::fs::write(b.video("broken.mp4"), broken).unwrap();
    std::fs::write(b.video("no_index.mp4"), &bytes[..40]).unwrap();
    let summary = b.run("out", &Options::default()).unwrap();
    let o = b.open("out");
    assert_eq!(o.clip("whole").num_frames, 100);
    let skipped = |source: &str, reason: &str| {
        let e = o.entry(source);
        assert_eq!((e.action, e.reason.as_str()), (Action::Skipped, reason), "{e:?}");
    };
    skipped("silent.mkv", "no video stream");
    skipped("text.mp4", "not a video");
    skipped("empty.mp4", "not a video");
    skipped("noise.avi", "not a video");
    skipped("no_index.mp4", "not a video");
    assert!(o.entry("text.mp4").detail.contains("text") && o.entry("empty.mp4").detail.contains("empty"));
    for (id, source) in [("truncated", "truncated.mp4"), ("broken", "broken.mp4")] {
        let e = o.entry(source);
        assert_eq!((e.action, e.reason.as_str()), (Action::Repaired, "damaged"), "{e:?}");
        let n = o.clip(id).num_frames;
        assert!((5..100).contains(&n), "{id}: {n}: {}", e.detail);
        // Nothing grey or smeared was kept.
        for frame in 0..n {
            let (left, right) = (o.colour(id, frame, 0.25, 0.5), o.colour(id, frame, 0.75, 0.5));
            assert!(near(left, [254, 0, 0]) && near(right, [0, 0, 254]), "{id} {frame}: {left:?} {right:?}");
        }
    }
    assert_eq!(summary.manifest.totals.skipped, 5);
    let report = block_on(inspect(&b.out("out"))).unwrap();
    let group = report.ledger.iter().find(|g| g.reason == "not a video").unwrap();
    assert_eq!((group.inputs, group.examples.len()), (4, 3));
    assert!(report.text().contains("2 repaired: damaged"), "{}", report.text());
}

#[test]
fn labels_cuts_and_splits_reach_the_index() {
    let b = Bench::new();
    b.make("a.mp4", &format!("{} -pix_fmt yuv420p", halves("64x64", 3.0, 10)));
    b.make("b.mp4", &format!("{} -pix_fmt yuv420p", halves("64x64", 1.0, 10)));
    let csv = b.dir.path().join("labels.csv");
    std::fs::write(
        &csv,
        "path,label,split,start_s,end_s\na.mp4,run,train,0.5,1.5\na.mp4,walk;run,val,2,\nb.mp4,walk,val,,\n",
    )
    .unwrap();
    let sources = Sources { labels: Some(csv), ..b.sources() };
    b.ingest(&sources, &Options::default(), "out").unwrap();
    let o = b.open("out");
    assert_eq!(o.dataset.manifest.labels, ["run", "walk"]);
    let first = o.clip("a@0.5-1.5");
    assert_eq!((first.num_frames, first.label, first.split), (10, Some(0), "train"));
    assert_eq!(first.start_s, 0.5);
    let second = o.clip("a@2-");
    assert_eq!((second.num_frames, second.label, second.labels), (10, Some(1), &[1, 0][..]));
    assert_eq!(o.dataset.manifest.splits["val"], 2);
    let report = block_on(inspect(&b.out("out"))).unwrap();
    assert_eq!(report.labels.iter().map(|l| l.clips).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn an_interrupted_ingest_ends_in_the_same_bytes() {
    let b = Bench::new();
    for i in 0..6 {
        // Noise, so that files fill up; 3 clips a video, so that a file's border falls inside one.
        b.make(
            &format!("{i}.mkv"),
            &format!("-f lavfi -i nullsrc=s=160x120:r=25:d=3,geq=random({i})*255:128:128 -c:v mjpeg -q:v 2"),
        );
    }
    std::fs::write(b.video("3b.mp4"), "no video").unwrap();
    let options = Options { clip_seconds: Some(1.0), file_size: 1 << 20, ..raw() };
    b.run("straight", &options).unwrap();
    let straight = b.objects("straight");
    let files: Vec<_> = straight.keys().filter(|k| k.starts_with("data/")).cloned().collect();
    assert!(files.len() >= 10, "{files:?}");
    assert!(!straight.keys().any(|k| k.starts_with("ingest/")));

    // Killed while the third file was on its way: two records, a third file without one.
    let binary = env!("CARGO_BIN_EXE_marey-shards");
    let mut child = Command::new(binary)
        .args(["ingest", "--out", b.out("killed").url(), "--clip-seconds", "1", "--codec", "raw"])
        .args(["--file-size", "1MiB", "--no-progress", "--jobs", "2"])
        .arg(b.dir.path().join("videos"))
        .spawn()
        .unwrap();
    let second = b.dir.path().join("killed/ingest/00001/00001.json");
    while !second.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!b.dir.path().join("killed/dataset.json").exists());

    // With other arguments: refused, and nothing is lost.
    let e = b.run("killed", &Options { short_side: 64, ..options.clone() }).unwrap_err();
    assert!(e.is_usage() && e.to_string().contains("short_side was 256, now 64"), "{e}");

    let summary = b.run("killed", &options).unwrap();
    assert!(summary.resumed > 0 || !summary.already);
    let killed: BTreeMap<_, _> =
        b.objects("killed").into_iter().filter(|(key, _)| !key.contains('#')).collect();
    assert!(straight == killed, "{:?} and {:?}", straight.keys(), killed.keys());

    // Done already: says so. Other arguments: an error. A half-done removal is finished.
    std::fs::create_dir_all(b.dir.path().join("killed/ingest/00001")).unwrap();
    std::fs::write(b.dir.path().join("killed/ingest/00001/00007.json"), "{}").unwrap();
    assert!(b.run("killed", &options).unwrap().already);
    assert!(!b.dir.path().join("killed/ingest/00001/00007.json").exists());
    let e = b.run("killed", &raw()).unwrap_err();
    assert!(e.is_usage() && e.to_string().contains("finished dataset with other arguments"), "{e}");
    std::fs::remove_file(b.video("5.mkv")).unwrap();
    assert!(b.run("killed", &options).unwrap_err().to_string().contains("it had 7 inputs, now 6"));
}

#[test]
fn damage_is_named_by_file_clip_and_run() {
    let b = Bench::new();
    b.make("a.mp4", &format!("{} -pix_fmt yuv420p", halves("64x64", 2.0, 25)));
    b.run("out", &Options::default()).unwrap();
    let o = b.open("out");
    let (clip, file) = (o.clip("a"), b.dir.path().join("out").join(o.dataset.file_key(o.clip("a"))));
    let check = || block_on(verify(&b.out("out"), &mut |_, _| ())).unwrap().damage.join("\n");
    assert_eq!(check(), "");
    let whole = std::fs::read(&file).unwrap();

    let mut bytes = whole.clone();
    bytes[(clip.offset + clip.run_bytes(2..3).start + 5) as usize] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let told = check();
    assert!(
        told.contains("/00000-")
            && told.contains(".parquet: its SHA-256")
            && told.contains("clip \"a\", run 2: its CRC32C"),
        "{told}"
    );
    let status = Command::new(env!("CARGO_BIN_EXE_marey-shards"))
        .args(["verify", b.out("out").url()])
        .output()
        .unwrap();
    assert_eq!(status.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&status.stdout).contains("run 2"));

    let mut bytes = whole.clone();
    let end = bytes.len();
    bytes[end - 20] ^= 0xff;
    std::fs::write(&file, &bytes).unwrap();
    assert!(check().contains("every run of frames in it is whole"), "{}", check());
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert!(check().contains("cut off"), "{}", check());
    std::fs::remove_file(&file).unwrap();
    assert!(check().contains("it is missing, with 1 clips"), "{}", check());
    std::fs::write(&file, &whole).unwrap();
    std::fs::write(b.dir.path().join("out/ledger.parquet"), "x").unwrap();
    assert!(check().contains("ledger.parquet: it has 1 bytes"), "{}", check());
    let index = b.dir.path().join("out/index.parquet");
    let mut bytes = std::fs::read(&index).unwrap();
    bytes[50] ^= 1;
    std::fs::write(&index, bytes).unwrap();
    assert!(check().contains("index.parquet"), "{}", check());
}

#[test]
fn the_program_answers_bad_input_with_status_2() {
    let b = Bench::new();
    std::fs::write(b.video("text.mp4"), "no video").unwrap();
    let out = b.out("out");
    let videos = b.dir.path().join("videos");
    let run = |args: &[&str]| {
        let o = Command::new(env!("CARGO_BIN_EXE_marey-shards")).args(args).output().unwrap();
        (o.status.code(), String::from_utf8_lossy(&o.stderr).into_owned())
    };
    let (code, told) = run(&["ingest", videos.to_str().unwrap(), "--out", out.url()]);
    assert_eq!(code, Some(2));
    assert!(told.contains("error: failed to ingest") && told.contains("text.mp4: not a video"), "{told}");
    assert_eq!(told.lines().count(), 1);
    // Nothing is left that would refuse the next try.
    assert!(b.objects("out").is_empty());
    let (code, told) = run(&["verify", out.url()]);
    assert_eq!(code, Some(2), "{told}");
    let (code, told) = run(&["inspect", out.url()]);
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("has no dataset.json"), "{told}");
    for (option, value) in [
        ("--quality", "0"),
        ("--fps", "-1"),
        ("--clip-seconds", "0"),
        ("--short-side", "0"),
        ("--jobs", "0"),
        ("--file-size", "12 parsecs"),
    ] {
        let (code, told) =
            run(&["ingest", videos.to_str().unwrap(), "--out", out.url(), &format!("{option}={value}")]);
        assert_eq!(code, Some(2), "{option}: {told}");
        assert!(told.contains(&option[2..]), "{told}");
    }
    let (code, told) = run(&["ingest", "/no/such/folder", "--out", out.url()]);
    assert!(code == Some(2) && told.contains("/no/such/folder"), "{told}");
    assert!(matches!(block_on(verify(&out, &mut |_, _| ())).unwrap_err(), Error::NotADataset { .. }));
}

/// The edge-case videos, or `None` where they are not at hand.
fn edge_videos() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/videos");
    let folder = std::env::var_os("MAREY_EDGE_VIDEOS").map_or(beside, PathBuf::from);
    if !folder.is_dir() {
        eprintln!("SKIPPED: no edge-case videos at {}; set MAREY_EDGE_VIDEOS", folder.display());
        return None;
    }
    Some(folder)
}

#[test]
fn edge_case_videos() {
    let Some(videos) = edge_videos() else { return };
    let b = Bench::new();
    let sources = Sources { videos, ..b.sources() };
    b.ingest(&sources, &Options { short_side: 128, ..Options::default() }, "out").unwrap();
    let o = b.open("out");
    let skipped: Vec<_> = o.ledger.iter().filter(|e| e.action == Action::Skipped).collect();
    assert!(skipped.is_empty(), "{skipped:?}");
    let of = |id: &str| (o.clip(id).width, o.clip(id).height, o.clip(id).num_frames);
    // It has two streams; the larger one counts.
    assert_eq!(of("nasa_13013"), (228, 128, 390));
    assert_eq!(of("nasa_13013_rotated"), (128, 228, 17));
    assert_eq!(of("testsrc2_odd_height_and_width_vp9_10bit"), (170, 128, 25));
    assert_eq!(of("discard_first_keyframe").2, 25);
    assert_eq!(of("test_non_zero_start").2, 12);
    assert_eq!(o.clip("test_non_zero_start").start_s, 0.0);
    // The left bar of the test picture is red, whatever depth, matrix and range carry it.
    for id in ["bt2020_10bit", "testsrc2_av1_10bit", "testsrc2_444_12bit_hevc", "testsrc2_vp8"] {
        let bar = o.colour(id, 3, 0.08, 0.6);
        assert!(near(bar, [254, 0, 0]), "{id}: {bar:?}");
    }
}
