//! What several test modules need.

use configs::Config;

/// The smallest job on the dataset `url`, with overrides.
pub fn config(url: &str, overrides: &[&str]) -> Config {
    let mut all = vec![format!("data.url={url}")];
    all.extend(overrides.iter().map(|o| o.to_string()));
    Config::parse("job.toml", include_str!("../tests/job.toml"), &all).unwrap()
}
