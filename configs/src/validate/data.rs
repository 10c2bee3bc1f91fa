//! Clips, lanes, augmentation and views.

use super::Rules;
use crate::{Augment, Data, Job, Requests, Result, Sampling, Scale, Shuffle};

impl Rules<'_> {
    pub(super) fn data(&self, job: &Job) -> Result<()> {
        let d = &job.data;
        self.require(!d.url.is_empty(), "data.url", "it is empty; name a dataset")?;
        self.require(!d.train_split.is_empty(), "data.train_split", "it is empty")?;
        self.require(!d.eval_split.is_empty(), "data.eval_split", "it is empty")?;
        self.positive("data.frames", d.frames.into())?;
        self.positive("data.sampling_rate", d.sampling_rate.into())?;
        if let Some(fps) = d.fps {
            self.positive("data.fps", fps)?;
        }
        let finite = d.mean.iter().all(|m| m.is_finite());
        self.require(finite, "data.mean", format!("{:?} must be three finite numbers", d.mean))?;
        for deviation in d.std {
            self.positive("data.std", deviation)?;
        }
        let a = &d.augment;
        self.positive("data.augment.crop", a.crop.into())?;
        let flip = (0.0..=1.0).contains(&a.flip);
        self.require(flip, "data.augment.flip", format!("{} must lie between 0 and 1", a.flip))?;
        match a.scale {
            Scale::ShortSide { min, max } => self.require(
                a.crop <= min && min <= max,
                "data.augment.scale",
                format!("short side {min}..={max} must be ascending and at least the crop, {}", a.crop),
            )?,
            Scale::Resized { area, aspect } => {
                let ok = 0.0 < area[0] && area[0] <= area[1] && area[1] <= 1.0;
                let why = format!("area = {area:?} must be ascending, above 0 and at most 1");
                self.require(ok, "data.augment.scale", why)?;
                let ok = 0.0 < aspect[0] && aspect[0] <= aspect[1] && aspect[1].is_finite();
                let why = format!("aspect = {aspect:?} must be ascending and above 0");
                self.require(ok, "data.augment.scale", why)?;
            }
        }
        self.augment(a)?;
        self.sampling(d)?;
        self.requests(&d.requests)?;
        if let Some(cache) = &d.cache {
            self.require(!cache.folder.is_empty(), "data.cache.folder", "it is empty; name a folder")?;
        }
        if let Some(n) = d.nominal {
            self.positive("data.nominal.clips", n.clips as f64)?;
            self.positive("data.nominal.classes", n.classes.into())?;
        }
        self.views("eval", d.eval.short_side, d.eval.crop)?;
        d.test.as_ref().map_or(Ok(()), |t| self.views("test", t.short_side, t.crop))
    }

    fn sampling(&self, d: &Data) -> Result<()> {
        let drawn = d.sampling == Sampling::ClassBalanced || !d.mixture.is_empty();
        self.require(
            d.epoch_clips.is_none() || drawn,
            "data.epoch_clips",
            "it is for sampling = \"class_balanced\" or a mixture; otherwise an epoch shows every clip once",
        )?;
        self.require(d.epoch_clips != Some(0), "data.epoch_clips", "0 must be greater than 0")?;
        let both = d.sampling == Sampling::ClassBalanced && !d.mixture.is_empty();
        self.require(!both, "data.sampling", "a mixture is drawn by its weights, not by class")?;
        let cached = d.cache.is_some() && !d.mixture.is_empty();
        self.require(!cached, "data.cache", "a mixture cannot be cached; leave one of them out")?;
        if d.shuffle == Shuffle::Grouped {
            self.require(
                !drawn,
                "data.shuffle",
                "grouped shuffling shows every clip once; use \"uniform\" here",
            )?;
            let why = "runs that are fetched in groups are not cached; leave one of them out";
            self.require(d.cache.is_none(), "data.shuffle", why)?;
        }
        for part in &d.mixture {
            self.require(!part.url.is_empty(), "data.mixture.url", "it is empty; name a dataset")?;
            self.require(!part.split.is_empty(), "data.mixture.split", "it is empty")?;
            self.positive("data.mixture.weight", part.weight)?;
        }
        let empty = d.quarantine.as_deref() == Some("");
        self.require(!empty, "data.quarantine", "it is empty; name a text file of clip ids, or leave it out")
    }

    fn requests(&self, r: &Requests) -> Result<()> {
        let at = |key: &str| format!("data.requests.{key}");
        let some = (1..=1024).contains(&r.at_once);
        self.require(some, &at("at_once"), format!("{} must lie between 1 and 1024", r.at_once))?;
        for (key, time) in [
            ("connect", r.connect),
            ("first_byte", r.first_byte),
            ("whole", r.whole),
            ("backoff", r.backoff[0]),
        ] {
            self.positive(&at(key), time.0)?;
        }
        self.require(r.retries <= 100, &at("retries"), format!("{} is more than 100", r.retries))?;
        let ascending = r.backoff[0].0 <= r.backoff[1].0;
        self.require(ascending, &at("backoff"), "write the shorter wait first")?;
        let why = format!("{} must lie between 1 and 100", r.hedge_after);
        self.require((1.0..=100.0).contains(&r.hedge_after), &at("hedge_after"), why)?;
        let why = format!("{} must lie between 0 and 1", r.hedge_share);
        self.require((0.0..=1.0).contains(&r.hedge_share), &at("hedge_share"), why)
    }

    fn views(&self, section: &str, short_side: u32, crop: u32) -> Result<()> {
        self.positive(&format!("data.{section}.crop"), crop.into())?;
        self.require(
            short_side >= crop,
            &format!("data.{section}.short_side"),
            format!("{short_side} is smaller than the crop, {crop}"),
        )
    }

    fn augment(&self, a: &Augment) -> Result<()> {
        let few = |key: &str, n: u32| {
            self.require((1..=100).contains(&n), key, format!("{n} must lie between 1 and 100"))
        };
        few("data.augment.repeats", a.repeats)?;
        if let Some(c) = a.color_jitter {
            for (key, x) in
                [("brightness", c.brightness), ("contrast", c.contrast), ("saturation", c.saturation)]
            {
                let key = format!("data.augment.color_jitter.{key}");
                self.require((0.0..=1.0).contains(&x), &key, format!("{x} must lie between 0 and 1"))?;
            }
        }
        if let Some(r) = a.rand_augment {
            let at = |key: &str| format!("data.augment.rand_augment.{key}");
            let ok = (0.0..=10.0).contains(&r.magnitude);
            self.require(ok, &at("magnitude"), format!("{} must lie between 0 and 10", r.magnitude))?;
            few(&at("num_ops"), r.num_ops)?;
            self.not_negative(&at("magnitude_std"), r.magnitude_std)?;
            let ok = (0.0..=1.0).contains(&r.prob);
            self.require(ok, &at("prob"), format!("{} must lie between 0 and 1", r.prob))?;
        }
        if let Some(e) = a.random_erasing {
            let at = |key: &str| format!("data.augment.random_erasing.{key}");
            let ok = (0.0..=1.0).contains(&e.prob);
            self.require(ok, &at("prob"), format!("{} must lie between 0 and 1", e.prob))?;
            let ok = 0.0 < e.area[0] && e.area[0] <= e.area[1] && e.area[1] <= 1.0;
            let why = format!("{:?} must be ascending, above 0 and at most 1", e.area);
            self.require(ok, &at("area"), why)?;
            let ok = 0.0 < e.aspect[0] && e.aspect[0] <= e.aspect[1] && e.aspect[1].is_finite();
            self.require(ok, &at("aspect"), format!("{:?} must be ascending and above 0", e.aspect))?;
        }
        Ok(())
    }

    pub(super) fn lanes(&self, job: &Job) -> Result<()> {
        let (lanes, batch) = (job.data.lanes, job.train.global_batch);
        self.positive("train.global_batch", batch.into())?;
        self.positive("data.lanes", lanes.into())?;
        self.require(
            batch.is_multiple_of(lanes),
            "data.lanes",
            format!(
                "train.global_batch = {batch} is not a multiple of data.lanes = {lanes}; the batch is dealt evenly to the lanes"
            ),
        )?;
        let most = job.cluster.workers.max(job.cluster.min_workers);
        self.require(
            most <= lanes,
            "cluster.workers",
            format!("{most} workers cannot share data.lanes = {lanes}; a worker owns at least one lane"),
        )
    }
}
