//! Folders of images, and tables of images.

use super::*;
use arrow::{
    array::{
        ArrayRef, BinaryBuilder, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
        StructBuilder,
    },
    datatypes::{DataType, Field, Fields},
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use shards::ingest::{TableSources, ingest as ingest_found};
use std::sync::Arc;

/// A frame whose grey grows with `t`.
fn jpeg(t: u8, width: usize, height: usize) -> Vec<u8> {
    let pixels: Vec<u8> =
        (0..width * height * 3).map(|i| t.wrapping_mul(20) / 2 + (i / 3 % width) as u8).collect();
    let image = turbojpeg::Image {
        pixels: &pixels[..],
        width,
        pitch: width * 3,
        height,
        format: turbojpeg::PixelFormat::RGB,
    };
    turbojpeg::compress(image, 95, turbojpeg::Subsamp::Sub2x2).unwrap().to_vec()
}

impl Bench {
    fn image(&self, name: &str, bytes: &[u8]) {
        let path = self.video(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn frames(&self) -> Sources {
        Sources { images_fps: Some(10.0), ..self.sources() }
    }
}

/// The stored frames of a clip.
fn stored(o: &Opened, id: &str) -> Vec<Vec<u8>> {
    let clip = o.clip(id);
    let key = o.dataset.file_key(clip);
    let bytes = block_on(o.dataset.location.get_range(key, clip.offset..clip.offset + clip.bytes)).unwrap();
    let mut frames = Vec::new();
    for ends in clip.run_offsets.windows(2) {
        let run = &bytes[ends[0] as usize..ends[1] as usize];
        let count = (clip.num_frames - frames.len() as u32).min(16);
        let codec = o.dataset.manifest.codec;
        let parts = split_run(codec, run, count, clip.width, clip.height).unwrap();
        frames.extend(parts.into_iter().map(|p| run[p].to_vec()));
    }
    frames
}

#[test]
fn folders_of_images_become_clips_in_natural_order() {
    let b = Bench::new();
    for t in 0..20u8 {
        // Not padded: 10 comes after 9.
        b.image(&format!("walk/a.b/img_{t}.jpg"), &jpeg(t, 48, 32));
    }
    b.image("walk/odd/1.jpg", &jpeg(0, 48, 32));
    b.image("walk/odd/2.jpg", &jpeg(0, 32, 32));
    b.image("run/broken/1.jpg", &jpeg(0, 48, 32));
    b.image("run/broken/2.jpg", &jpeg(1, 48, 32)[..400]);
    b.image("run/notes/readme.txt", b"no image");
    b.ingest(&b.frames(), &Options::default(), "kept").unwrap();
    let o = b.open("kept");
    let ids: Vec<_> = o.dataset.clips.iter().map(|c| c.clip_id.to_string()).collect();
    assert_eq!(ids, ["walk/a.b"]);
    let clip = o.clip("walk/a.b");
    assert_eq!((clip.num_frames, clip.fps, clip.width, clip.height), (20, 10.0, 48, 32));
    // Byte for byte.
    assert!(stored(&o, "walk/a.b").iter().zip(0..).all(|(frame, t)| *frame == jpeg(t, 48, 32)));
    let odd = o.entry("walk/odd");
    assert_eq!((odd.action, odd.reason.as_str()), (Action::Skipped, "sizes differ"));
    assert!(odd.detail.contains("2.jpg") && odd.detail.contains("32x32"), "{odd:?}");
    let broken = o.entry("run/broken");
    assert!(broken.reason == "damaged image" && broken.detail.starts_with("2.jpg: "), "{broken:?}");

    // Smaller, at half the rate, in clips of a second.
    let options = Options { short_side: 16, fps: Some(5.0), clip_seconds: Some(1.0), ..Options::default() };
    b.ingest(&b.frames(), &options, "small").unwrap();
    let o = b.open("small");
    let shape = |c: Clip<'_>| (c.clip_id.to_string(), c.num_frames, c.fps, c.width, c.height);
    let all: Vec<_> = o.dataset.clips.iter().map(shape).collect();
    assert_eq!(all, [("walk/a.b#0000".into(), 5, 5.0, 24, 16), ("walk/a.b#0001".into(), 5, 5.0, 24, 16)]);

    // Labels name the folders, and may cut.
    let csv = b.dir.path().join("labels.csv");
    std::fs::write(&csv, "path,label,start_s,end_s\nwalk/a.b,walk,0.5,1.0\nwalk/a.b,walk,5,\nwalk/odd,walk,,\nrun/broken,run,,\n").unwrap();
    b.ingest(&Sources { labels: Some(csv), ..b.frames() }, &raw(), "cut").unwrap();
    let o = b.open("cut");
    let clip = o.clip("walk/a.b@0.5-1");
    assert_eq!((clip.num_frames, clip.start_s, clip.label), (5, 0.5, Some(1)));
    assert_eq!(o.entry("walk/a.b").reason, "empty cut");

    let args = |more: &[&str]| {
        let mut c = Command::new(env!("CARGO_BIN_EXE_marey-shards"));
        let out =
            c.args(["ingest", "--out", b.out("cli").url(), "--no-progress"]).args(more).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let videos = b.dir.path().join("videos");
    let (code, text) = args(&["--from-frames", videos.to_str().unwrap()]);
    assert!(code == Some(2) && text.contains("--source-fps"), "{text}");
    let (code, text) = args(&["--from-frames", videos.to_str().unwrap(), "--source-fps", "10"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(b.objects("cli").keys().eq(b.objects("kept").keys()));
}

/// A row as Hugging Face writes it: a struct of bytes and path an image.
struct Rows {
    images: ListBuilder<StructBuilder>,
    ids: Vec<String>,
    labels: Vec<Option<i64>>,
}

impl Rows {
    fn new() -> Self {
        let fields = Fields::from(vec![
            Field::new("bytes", DataType::Binary, true),
            Field::new("path", DataType::Utf8, true),
        ]);
        let images = ListBuilder::new(StructBuilder::from_fields(fields, 0));
        Self { images, ids: vec![], labels: vec![] }
    }

    fn add(&mut self, id: &str, label: Option<i64>, images: &[Option<&[u8]>]) {
        let values = self.images.values();
        for image in images {
            values.field_builder::<BinaryBuilder>(0).unwrap().append_option(*image);
            values.field_builder::<StringBuilder>(1).unwrap().append_value("x.jpg");
            values.append(true);
        }
        self.images.append(true);
        self.ids.push(id.into());
        self.labels.push(label);
    }

    fn write(mut self, path: &Path, compression: Compression) {
        let columns: [(&str, ArrayRef); 3] = [
            ("name", Arc::new(StringArray::from(self.ids))),
            ("image", Arc::new(self.images.finish())),
            ("label", Arc::new(Int64Array::from(self.labels))),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let names = r#"{"info":{"features":{"label":{"names":["jump","sit","walk"],"_type":"ClassLabel"}}}}"#;
        let names = parquet::file::metadata::KeyValue::new("huggingface".into(), names.to_string());
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .set_max_row_group_row_count(Some(3))
            .set_key_value_metadata(Some(vec![names]))
            .build();
        let file = std::fs::File::create(path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }
}

#[test]
fn a_table_of_images_is_adopted() {
    let b = Bench::new();
    let frames: Vec<Vec<u8>> = (0..6).map(|t| jpeg(t, 48, 32)).collect();
    let images: Vec<Option<&[u8]>> = frames.iter().map(|f| Some(f.as_slice())).collect();
    let mut rows = Rows::new();
    rows.add("a", Some(2), &images);
    rows.add("b", Some(-1), &images[..3]);
    rows.add("c", Some(0), &[images[0], None]);
    rows.add("d", Some(1), &[images[0], Some(b"noise")]);
    rows.add("a", Some(1), &images);
    rows.add("", Some(1), &images);
    rows.add("e", None, &[]);
    let folder = b.dir.path().join("table");
    std::fs::create_dir(&folder).unwrap();
    rows.write(&folder.join("train-00000-of-00002.parquet"), Compression::SNAPPY);
    let mut rows = Rows::new();
    rows.add("f", Some(0), &images[2..]);
    rows.write(&folder.join("validation-00000-of-00001.parquet"), Compression::ZSTD(ZstdLevel::default()));

    let table = TableSources {
        url: folder.to_str().unwrap().into(),
        frames: "image".into(),
        label: Some("label".into()),
        id: Some("name".into()),
        source_fps: Some(12.0),
        default_split: "train".into(),
        ..TableSources::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let find = |table: &TableSources| table.find(runtime.handle());
    let found = find(&table).unwrap();
    ingest_found(&runtime, &found, &Options::default(), &b.out("out"), 2, true).unwrap();
    let o = b.open("out");
    assert_eq!(o.dataset.manifest.labels, ["jump", "sit", "walk"]);
    let clip = |c: Clip<'_>| (c.clip_id.to_string(), c.label, c.split.to_string(), c.num_frames);
    let clips: Vec<_> = o.dataset.clips.iter().map(clip).collect();
    let expected = |id: &str, label, split: &str, n| (id.to_string(), label, split.to_string(), n);
    assert_eq!(
        clips,
        [
            expected("a", Some(2), "train", 6),
            expected("b", None, "train", 3),
            expected("f", Some(0), "val", 4)
        ]
    );
    assert_eq!(stored(&o, "a"), frames);
    assert_eq!(o.clip("f").fps, 12.0);
    let entry = |row: u32| {
        let e = o.entry(&format!("train-00000-of-00002.parquet#{row}"));
        (e.reason.clone(), e.detail.clone())
    };
    assert!(entry(2).1.contains("image 1 has no bytes"), "{:?}", entry(2));
    assert!(entry(3).0 == "damaged image" && entry(3).1.starts_with("image 1: "), "{:?}", entry(3));
    assert!(
        entry(4).0 == "duplicate id" && entry(4).1.contains("parquet#0 has the id \"a\""),
        "{:?}",
        entry(4)
    );
    assert_eq!(entry(5).0, "no id");
    assert_eq!(entry(6).0, "no images");
    assert_eq!(o.dataset.manifest.totals.skipped, 5);
    assert_eq!(block_on(verify(&b.out("out"), &mut |_, _| ())).unwrap().damage, [""; 0]);

    let refused = |table: TableSources, part: &str| {
        let e = find(&table).unwrap_err();
        assert!(e.is_usage() && e.to_string().contains(part), "{e}");
    };
    let column = |frames: &str| TableSources { frames: frames.into(), ..table.clone() };
    refused(column("images"), "no column \"images\"; it has: name, image, label");
    refused(column("name"), "not a list of encoded images");
    refused(TableSources { label: Some("image".into()), ..table.clone() }, "neither text nor whole numbers");
    refused(TableSources { source_fps: None, ..table.clone() }, "--source-fps");
    refused(
        TableSources { url: b.dir.path().join("videos").to_str().unwrap().into(), ..table.clone() },
        ".parquet",
    );
}
