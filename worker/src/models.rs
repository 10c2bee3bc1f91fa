//! `marey models`: the named networks, their size and cost.

use crate::Result;
use models::{PRESETS, Preset};
use serde_json::json;

/// `marey models`
#[derive(Clone, Debug, clap::Args)]
pub struct ModelsArgs {
    /// Print JSON, with exact numbers.
    #[arg(long)]
    pub json: bool,
}

/// Prints every named network. Nothing is allocated for their weights.
pub fn command(args: &ModelsArgs) -> Result<()> {
    print!("{}", if args.json { as_json()? } else { as_text()? });
    Ok(())
}

fn as_text() -> Result<String> {
    let mut text = format!(
        "{:<25} {:>9} {:>8}  {:<10}  {:<22}  {}\n",
        "name", "params/M", "GFLOPs", "input", "reference", "recipe"
    );
    for p in PRESETS {
        text += &format!(
            "{:<25} {:>9.1} {:>8.1}  {:<10}  {:<22}  {}\n",
            p.name,
            p.parameters()? as f64 / 1e6,
            p.gflops()?,
            input(p),
            p.reference,
            p.recipe.map_or("-".into(), |r| format!("configs/{r}")),
        );
    }
    text += "Parameters at 400 classes; GFLOPs are multiply-adds of one clip of that input.\n";
    Ok(text)
}

fn as_json() -> Result<String> {
    let rows = PRESETS.iter().map(|p| {
        Ok(json!({
            "name": p.name,
            "parameters": p.parameters()?,
            "gflops": p.gflops()?,
            "input": [p.frames, p.test_crop, p.test_crop],
            "reference": p.reference,
            "recipe": p.recipe.map(|r| format!("configs/{r}")),
        }))
    });
    Ok(format!("{:#}\n", serde_json::Value::Array(rows.collect::<Result<_>>()?)))
}

/// Frames x height x width.
fn input(p: &Preset) -> String {
    format!("{}x{}x{}", p.frames, p.test_crop, p.test_crop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_network_is_listed_with_its_figures() {
        let text = as_text().unwrap();
        assert_eq!(text.lines().count(), PRESETS.len() + 2);
        let line = text.lines().find(|l| l.starts_with("slowfast_r50 ")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[1..4], ["34.6", "65.7", "32x256x256"], "{line}");
        assert_eq!(words[4..], ["pytorchvideo", "configs/slowfast_8x8_r50_k400.toml"], "{line}");
    }

    #[test]
    fn json_has_exact_numbers() {
        let rows: serde_json::Value = serde_json::from_str(&as_json().unwrap()).unwrap();
        let row = rows.as_array().unwrap().iter().find(|r| r["name"] == "swin3d_t").unwrap();
        assert_eq!(row["parameters"], 28_158_070);
        assert_eq!(row["input"], json!([32, 224, 224]));
    }
}
