//! Between the wire's messages and the core's types: the only place that knows both.

use crate::core::*;
use proto::v1;

/// One upward message after the Hello, as an event. `None`: an empty message, or a second Hello.
pub fn event(worker: WorkerId, message: v1::WorkerMessage) -> Option<Event> {
    use v1::worker_message::Kind;
    Some(match message.kind? {
        Kind::Hello(_) => return None,
        Kind::Beat(b) => Event::Beat { worker, beat: beat(b) },
        Kind::Step(r) => Event::Step { worker, report: step(r) },
        Kind::Eval(r) => Event::Eval { worker, report: eval(r) },
        Kind::Shard(s) => Event::Shard { worker, shard: shard(s) },
        Kind::Log(l) => Event::Log { worker, level: level(&l.level), text: l.text },
        Kind::Failed(f) if f.ends && !f.fatal => Event::Broken { worker, step: Step(f.step), error: f.error },
        Kind::Failed(f) => Event::StepFailed {
            worker,
            generation: Generation(f.generation),
            step: Step(f.step),
            error: f.error,
            fatal: f.fatal,
        },
        Kind::Finished(f) => {
            Event::Finished { worker, generation: Generation(f.generation), step: Step(f.step) }
        }
        Kind::Leaving(l) => Event::Leaving { worker, reason: l.reason },
        Kind::Left(l) => Event::Left { worker, generation: Generation(l.generation), step: Step(l.step) },
    })
}

/// The first message of a session.
pub fn hello(h: v1::Hello) -> Hello {
    Hello {
        protocol_version: h.protocol_version,
        name: h.worker,
        node: h.node,
        device: h.device,
        config_digest: h.config_digest,
        dataset_digest: h.dataset_digest,
        generation: Generation(h.generation),
        rank: Rank(h.rank),
        coordinator: Epoch(h.coordinator),
    }
}

/// How a trainer ended.
pub fn exit(r: v1::ExitReport) -> ExitReport {
    ExitReport {
        worker: r.worker,
        node: r.host,
        device: r.device,
        cause: r.cause,
        last_lines: r.last_lines,
        restarts: r.restarts,
    }
}

/// A directive of the coordinator `epoch` for its worker.
pub fn directive(epoch: Epoch, d: Directive) -> v1::Directive {
    use v1::directive::Kind;
    let kind = match d {
        Directive::Welcome { name } => Kind::Welcome(v1::Welcome { worker: name }),
        Directive::Assigned { generation, rank, members, committed } => Kind::Assigned(v1::Assigned {
            committed_generation: committed.unwrap_or_default().0.0,
            committed_step: committed.unwrap_or_default().1.0,
            generation: generation.0,
            rank: rank.0,
            world_size: members.len() as u32,
            members: members.to_vec(),
        }),
        Directive::Stop { generation, reason } => Kind::Stop(v1::Stop { generation: generation.0, reason }),
        Directive::Leave { generation, reason, checkpoint } => {
            Kind::Leave(v1::Leave { generation: generation.0, reason, checkpoint })
        }
        Directive::CheckpointNow => Kind::CheckpointNow(v1::CheckpointNow {}),
        Directive::Committed { step } => Kind::Committed(v1::Committed { step: step.0 }),
        Directive::Shutdown { ok, reason, restart } => Kind::Shutdown(v1::Shutdown { ok, reason, restart }),
    };
    v1::Directive { kind: Some(kind), coordinator: epoch.0 }
}

/// A notice for those who watch.
pub fn job_event(unix_ms: u64, notice: &Notice) -> v1::JobEvent {
    use v1::job_event::Kind;
    let kind = match notice.clone() {
        Notice::Generation { generation, members } => {
            Kind::Generation(v1::GenerationStarted { generation: generation.0, members })
        }
        Notice::Step(r) => Kind::Step(step_out(r)),
        Notice::Eval(r) => Kind::Eval(v1::EvalReport {
            generation: r.generation.0,
            epoch: r.epoch,
            step: r.step.0,
            loss: r.loss,
            top1: r.top1,
            top5: r.top5,
            clips: r.clips,
            seconds: r.seconds,
            mean_average_precision: r.mean_average_precision,
            missing: r.missing,
        }),
        Notice::Checkpoint { step, bytes, manifest } => {
            Kind::Checkpoint(v1::CheckpointCommitted { step: step.0, bytes, manifest })
        }
        Notice::Lost { worker, rank, step, reason } => {
            Kind::Lost(v1::WorkerLost { worker, rank: rank.0, step: step.0, reason })
        }
        Notice::Log { level, text } => Kind::Log(v1::Log { level: level_name(level).into(), text }),
        Notice::Ended { ok, reason } => Kind::Ended(v1::JobEnded { ok, reason }),
        Notice::Beat { worker, rank, beat: b } => {
            Kind::Beat(v1::WorkerBeat { worker, rank: rank.0, beat: Some(beat_out(b)) })
        }
        Notice::Incident(i) => Kind::Incident(incident(i)),
    };
    v1::JobEvent { unix_ms, kind: Some(kind) }
}

/// Where the job stands, with its last incidents.
pub fn status(s: Status, incidents: impl Iterator<Item = v1::JobEvent>, run_url: String) -> v1::JobStatus {
    v1::JobStatus {
        coordinator: s.coordinator.0,
        generation: s.generation.0,
        state: s.state.into(),
        step: s.step.map(step_out),
        committed: s.committed.unwrap_or_default().0,
        members: s.members.into_iter().map(member).collect(),
        incidents: incidents.collect(),
        run_url,
    }
}

fn member(m: MemberStatus) -> v1::MemberStatus {
    v1::MemberStatus {
        worker: m.worker,
        host: m.host,
        device: m.device,
        rank: m.rank.map(|r| r.0),
        beat: Some(beat_out(m.beat)),
        silent_seconds: m.silent.as_secs_f64(),
        still_seconds: m.still.as_secs_f64(),
        leaving: m.leaving,
    }
}

fn incident(i: Incident) -> v1::Incident {
    v1::Incident {
        generation: i.generation.0,
        kind: i.what.name().into(),
        worker: i.worker,
        rank: i.rank.unwrap_or_default().0,
        host: i.host,
        step: i.step.0,
        phase: i.phase,
        cause: i.cause,
        seconds: i.seconds,
        last_lines: i.last_lines,
        collective: i.collective,
        clip: i.clip,
    }
}

fn step_out(r: StepReport) -> v1::StepReport {
    v1::StepReport {
        generation: r.generation.0,
        epoch: r.epoch,
        step: r.step.0,
        steps_per_epoch: r.steps_per_epoch,
        total_steps: r.total_steps,
        loss: r.loss,
        accuracy: r.accuracy,
        lr: r.lr,
        clips: r.clips,
        step_seconds: r.step_seconds,
        data_wait_seconds: r.data_wait_seconds,
        exchange_wait_seconds: r.exchange_wait_seconds,
        peak_memory_bytes: r.peak_memory_bytes,
        grad_norm: r.grad_norm,
        skipped: r.skipped,
        step_in_epoch: r.step_in_epoch,
        missing: r.missing,
    }
}

fn beat(b: v1::Beat) -> Beat {
    Beat {
        generation: Generation(b.generation),
        epoch: b.epoch,
        step: Step(b.step),
        phase: b.phase,
        progress: b.progress,
        step_seconds: b.step_seconds,
        data_wait_seconds: b.data_wait_seconds,
        exchange_wait_seconds: b.exchange_wait_seconds,
        collective: b.collective,
        clip: b.clip,
    }
}

fn beat_out(b: Beat) -> v1::Beat {
    v1::Beat {
        generation: b.generation.0,
        epoch: b.epoch,
        step: b.step.0,
        phase: b.phase,
        progress: b.progress,
        step_seconds: b.step_seconds,
        data_wait_seconds: b.data_wait_seconds,
        exchange_wait_seconds: b.exchange_wait_seconds,
        collective: b.collective,
        clip: b.clip,
    }
}

fn step(r: v1::StepReport) -> StepReport {
    StepReport {
        generation: Generation(r.generation),
        epoch: r.epoch,
        step: Step(r.step),
        steps_per_epoch: r.steps_per_epoch,
        total_steps: r.total_steps,
        loss: r.loss,
        accuracy: r.accuracy,
        lr: r.lr,
        clips: r.clips,
        step_seconds: r.step_seconds,
        data_wait_seconds: r.data_wait_seconds,
        exchange_wait_seconds: r.exchange_wait_seconds,
        peak_memory_bytes: r.peak_memory_bytes,
        grad_norm: r.grad_norm,
        skipped: r.skipped,
        step_in_epoch: r.step_in_epoch,
        missing: r.missing,
    }
}

fn eval(r: v1::EvalReport) -> EvalReport {
    EvalReport {
        generation: Generation(r.generation),
        epoch: r.epoch,
        step: Step(r.step),
        loss: r.loss,
        top1: r.top1,
        top5: r.top5,
        clips: r.clips,
        seconds: r.seconds,
        mean_average_precision: r.mean_average_precision,
        missing: r.missing,
    }
}

fn shard(s: v1::CheckpointShard) -> Shard {
    Shard {
        generation: Generation(s.generation),
        step: Step(s.step),
        rank: Rank(s.rank),
        world_size: s.world_size,
        attempt: s.attempt,
        files: s
            .files
            .into_iter()
            .map(|f| CheckpointFile { key: f.key, bytes: f.bytes, sha256: f.sha256 })
            .collect(),
        header_json: s.header_json,
    }
}

fn level(name: &str) -> Level {
    match name {
        "error" => Level::Error,
        "warn" => Level::Warn,
        _ => Level::Info,
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    }
}
