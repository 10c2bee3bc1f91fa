//! `marey parity`: does a network agree with the implementation that its weights come from?

use crate::{Error, Result, checkpoint::load::tensors_of};
use models::parity::{Report, check};
use serde_json::json;
use std::{collections::HashMap, path::PathBuf};

/// Errors listed, the largest first.
const LINES: usize = 10;

/// `marey parity`
#[derive(Clone, Debug, clap::Args)]
pub struct ParityArgs {
    /// A safetensors file with weights (w.*), inputs (in.*), logits (out) and gradients (g.*).
    pub reference: PathBuf,
    /// The network's preset, like slowfast_r50 or swin3d_t.
    #[arg(long)]
    pub model: String,
    /// Compare the gradients too.
    #[arg(long)]
    pub grad: bool,
    /// Compute in float64.
    #[arg(long)]
    pub double: bool,
    /// The largest relative error that counts as agreement [default: 1e-4, with --double 1e-10].
    #[arg(long)]
    pub tolerance: Option<f64>,
    /// Print JSON, with every error.
    #[arg(long)]
    pub json: bool,
    /// Threads to compute with [default: one a core].
    #[arg(long)]
    pub threads: Option<usize>,
}

/// Compares and prints. The exit status: 0 if they agree, 1 if not; a bad file or name is an error.
pub fn command(args: ParityArgs) -> Result<u8> {
    if let Some(n) = args.threads {
        tch::set_num_threads(n.max(1) as i32);
    }
    let reference = read(&args.reference)?;
    let report = check(&args.model, reference, args.grad, args.double, tch::Device::Cpu)?;
    // Not `worst > tolerance`: what is not a number does not agree.
    let agrees = report.worst() <= args.tolerance();
    if args.json {
        println!("{:#}", as_json(&args, &report, agrees));
    } else {
        print!("{}", as_text(&args, &report, agrees));
    }
    Ok(if agrees { 0 } else { 1 })
}

impl ParityArgs {
    fn tolerance(&self) -> f64 {
        self.tolerance.unwrap_or(if self.double { 1e-10 } else { 1e-4 })
    }
}

fn read(path: &std::path::Path) -> Result<HashMap<String, tch::Tensor>> {
    let bad = |why: String| Error::Usage(format!("read {}: {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    Ok(tensors_of(&bytes).map_err(bad)?.into_iter().collect())
}

fn as_text(args: &ParityArgs, report: &Report, agrees: bool) -> String {
    let mut text = String::from("largest relative errors\n");
    for e in report.errors.iter().take(LINES) {
        text += &format!("{:9.2e}  {}\n", e.relative, e.name);
    }
    let verdict = if agrees { "agrees" } else { "DOES NOT AGREE" };
    text += &format!(
        "{} {verdict} with {} within {:e}: the largest of {} errors is {:.2e}\n",
        args.model,
        args.reference.display(),
        args.tolerance(),
        report.errors.len(),
        report.worst()
    );
    text
}

fn as_json(args: &ParityArgs, report: &Report, agrees: bool) -> serde_json::Value {
    // JSON has no infinity.
    let number = |x: f64| if x.is_finite() { json!(x) } else { json!(x.to_string()) };
    let errors: Vec<_> =
        report.errors.iter().map(|e| json!({ "name": e.name, "relative": number(e.relative) })).collect();
    json!({
        "model": args.model,
        "reference": args.reference.display().to_string(),
        "tolerance": args.tolerance(),
        "agrees": agrees,
        "worst": number(report.worst()),
        "errors": errors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::parity::Deviation;

    fn args(reference: PathBuf) -> ParityArgs {
        let model = "slowfast_r50".into();
        ParityArgs {
            reference,
            model,
            grad: false,
            double: false,
            tolerance: None,
            json: false,
            threads: None,
        }
    }

    #[test]
    fn files_and_names_that_are_wrong_are_usage_errors() {
        let dir = tempfile::tempdir().unwrap();
        let missing = command(args(dir.path().join("none.safetensors"))).unwrap_err();
        assert!(missing.exit_code() == 2 && missing.to_string().contains("none.safetensors"), "{missing}");
        let file = dir.path().join("bad.safetensors");
        std::fs::write(&file, [255u8; 64]).unwrap();
        let bad = command(args(file.clone())).unwrap_err();
        assert!(bad.exit_code() == 2 && bad.to_string().contains("no safetensors file"), "{bad}");
        std::fs::write(&file, [&2u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
        let empty = command(args(file.clone())).unwrap_err();
        assert!(empty.exit_code() == 2 && empty.to_string().contains("out"), "{empty}");
        let unknown = command(ParityArgs { model: "slowfast".into(), ..args(file) }).unwrap_err();
        assert!(unknown.exit_code() == 2 && unknown.to_string().contains("slowfast_r50"), "{unknown}");
    }

    #[test]
    fn float64_asks_for_more() {
        let single = args("r".into());
        let double = ParityArgs { double: true, ..single.clone() };
        assert_eq!((single.tolerance(), double.tolerance()), (1e-4, 1e-10));
        assert_eq!(ParityArgs { tolerance: Some(0.1), ..double }.tolerance(), 0.1);
    }

    #[test]
    fn infinity_does_not_agree() {
        let deviation = |relative| Deviation { name: "out".into(), relative };
        let report = Report { errors: vec![deviation(f64::INFINITY), deviation(1e-6)] };
        let text = as_text(&args("r".into()), &report, report.worst() <= 1e-4);
        assert!(text.contains("DOES NOT AGREE") && text.contains("of 2 errors"), "{text}");
        assert_eq!(as_json(&args("r".into()), &report, false)["worst"], "inf");
    }
}
