//! `cargo xtask demo`: the whole of Marey on one machine, from videos to a report, in plain words.

mod job;

use crate::{motion, s3};
use anyhow::{Context, Result, ensure};
use job::Stop;
use std::{
    fs,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

const DATA: &str = "s3://marey/motion";
const RUN: &str = "s3://marey/runs/demo";
/// Side of the demo's videos: a little more than the network's crop, 64.
const SIDE: u32 = 72;
const UNSEEN: &str = "rotate_right";

/// Which demo.
struct Plan {
    recipe: &'static str,
    train: usize,
    val: usize,
}

/// Runs the demo; `long` takes twice the clips and more epochs.
pub fn run(long: bool) -> Result<()> {
    let plan = if long {
        Plan { recipe: "configs/demo_long.toml", train: 7680, val: 480 }
    } else {
        Plan { recipe: "configs/demo.toml", train: 3600, val: 240 }
    };
    let demo = Demo::prepare()?;
    let (dir, began) = (&demo.dir, demo.began);

    demo.stage(
        1,
        "A labelled set from real video",
        &format!(
            "A window moves over one still frame of a real video, in one of {} ways: it pans in one of 8\n\
             directions, zooms in or out, or turns left or right. The label is only in the motion; a single\n\
             frame cannot give it away. {} clips are for training and {} for validation, from other videos.",
            motion::LABELS.len(),
            plan.train,
            plan.val
        ),
    );
    let spec = motion::Spec { train: plan.train, val: plan.val, size: SIDE, frames: 24, seed: 1 };
    let videos = dir.join("videos");
    let timer = crate::now();
    motion::write_set(&videos, &spec)?;
    let unseen = dir.join("unseen.mp4");
    motion::write_unseen(&unseen, UNSEEN, &spec)?;
    println!("{} H.264 files and labels.csv are in {}", plan.train + plan.val, show(&videos));
    took(timer);

    demo.stage(
        2,
        "An S3 server, and the videos as a clip dataset on it",
        "SeaweedFS starts on this machine. The videos are decoded once, in parallel, into Parquet files\n\
         on it: from here on nothing decodes a video again.",
    );
    let server = s3::Server::start(&dir.join("s3"), "marey")?;
    println!("S3 answers at {}", server.endpoint());
    let labels = videos.join("labels.csv");
    let side = SIDE.to_string();
    let ingest = ["ingest", &show(&videos), "--labels", &show(&labels), "--out", DATA, "--short-side", &side];
    demo.marey(&server, &ingest)?;
    demo.marey(&server, &["inspect", DATA])?;

    let url = format!("data.url={DATA}");
    let train = ["train", plan.recipe, "--workers", "2", "--run", RUN, "--set", &url];
    let half = epochs(plan.recipe)?.div_ceil(2);
    demo.stage(
        3,
        "Training on two workers",
        &format!(
            "A coordinator and two workers start. Every step each worker takes its half of the batch, and they\n\
             average their gradients. After each epoch they measure the validation accuracy (chance is {:.1} %)\n\
             and write a checkpoint to S3. After checkpoint {half} everything is killed, without warning.",
            100.0 / motion::LABELS.len() as f64
        ),
    );
    demo.train(&server, &train, Stop::AfterCheckpoints(half))?;

    demo.stage(
        4,
        "The same command again",
        "Nothing is left of the job but what is on S3. The same command finds the newest whole checkpoint\n\
         there and goes on from it.",
    );
    demo.train(&server, &train, Stop::AtTheEnd)?;

    demo.stage(
        5,
        "What it has learned",
        "Each validation clip is seen through several views (windows in time and crops in space), whose\n\
         probabilities are averaged. Then one new video, which is in no set, is named.",
    );
    let eval = dir.join("eval");
    demo.marey(
        &server,
        &["eval", "--checkpoint", RUN, "--data", DATA, "--views", "2x3", "--out", &show(&eval)],
    )?;
    println!("The new video shows the motion {UNSEEN}. What does the model say?");
    demo.marey(&server, &["predict", "--checkpoint", RUN, &show(&unseen), "--short-side", &side])?;
    let eval = eval.join("eval.json");
    let report = crate::root().join("demo/report.html");
    let args = ["report", "--run", RUN, "--data", DATA, "--eval", &show(&eval), "--out", &show(&report)];
    demo.marey(&server, &args)?;

    let top1 = top1(&eval)?;
    demo.heading("Done");
    println!(
        "Validation accuracy: {:.1} % (chance is {:.1} %).",
        top1 * 100.0,
        100.0 / motion::LABELS.len() as f64
    );
    println!("Open {} in a browser: curves over both halves, clips, confusion matrix.", show(&report));
    println!("The whole demo took {}.", time(began));
    Ok(())
}

struct Demo {
    dir: PathBuf,
    marey: PathBuf,
    began: Instant,
    colour: bool,
}

impl Demo {
    /// Finds the programs and empties `demo/out`.
    fn prepare() -> Result<Self> {
        // Recipes and printed paths are relative to the checkout.
        std::env::set_current_dir(crate::root()).context("enter the checkout")?;
        let me = std::env::current_exe().context("find this program")?;
        let marey = me.with_file_name("marey");
        ensure!(marey.exists(), "find {}; run `make demo`, which builds it", marey.display());
        let dir = crate::root().join("demo/out");
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("empty {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self { dir, marey, began: crate::now(), colour: std::io::stdout().is_terminal() })
    }

    fn stage(&self, number: u32, title: &str, words: &str) {
        self.heading(&format!("{number}/5  {title}"));
        println!("{words}\n");
    }

    fn heading(&self, text: &str) {
        let (bold, plain) = if self.colour { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        println!("\n{bold}== {text}{plain}  ({})", time(self.began));
    }

    /// Prints and runs `marey ARGS` with its own progress bars, and insists on success.
    fn marey(&self, server: &s3::Server, args: &[&str]) -> Result<()> {
        let timer = crate::now();
        let status = self.command(server, args).status().context("start marey")?;
        ensure!(status.success(), "run marey {}: it ended with {status}", args[0]);
        took(timer);
        Ok(())
    }

    fn train(&self, server: &s3::Server, args: &[&str], stop: Stop) -> Result<()> {
        let timer = crate::now();
        job::run(self.command(server, args), stop)?;
        took(timer);
        Ok(())
    }

    fn command(&self, server: &s3::Server, args: &[&str]) -> Command {
        println!("$ marey {}", args.join(" "));
        let _ = std::io::stdout().flush();
        let mut command = Command::new(&self.marey);
        // Whatever this shell says about some other S3 does not count here.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        command.args(args).envs(server.env()).stdin(Stdio::null());
        command
    }
}

fn epochs(recipe: &str) -> Result<u64> {
    let config = configs::Config::read(Path::new(recipe), &[]).map_err(|e| anyhow::anyhow!("{e}"))?;
    Ok(config.train.epochs)
}

fn top1(eval: &Path) -> Result<f64> {
    let text = fs::read(eval).with_context(|| format!("read {}", eval.display()))?;
    let value: serde_json::Value = serde_json::from_slice(&text)?;
    value["top1"].as_f64().with_context(|| format!("find top1 in {}", eval.display()))
}

fn took(timer: Instant) {
    println!("[{}]\n", time(timer));
}

fn time(since: Instant) -> String {
    let seconds = since.elapsed().as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:02.0} s", seconds as u64 / 60, seconds % 60.0)
    }
}

/// Relative to the checkout, as one would type it.
fn show(path: &Path) -> String {
    path.strip_prefix(crate::root()).unwrap_or(path).display().to_string()
}
