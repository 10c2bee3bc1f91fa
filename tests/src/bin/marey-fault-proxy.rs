//! The fault proxy as a program: stands before an endpoint until Ctrl-C, then prints what it did as JSON.

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use std::net::SocketAddr;
use tests::proxy::{Proxy, Rule};

/// An HTTP proxy with faults, for trying out how a program fares with a bad network or store.
#[derive(Parser)]
struct Arguments {
    /// The endpoint behind it, like http://127.0.0.1:8333
    #[arg(long)]
    upstream: String,
    /// Where it listens
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The same seed draws the same faults for the same requests
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// METHODS KEYS SHARE FAULT [ARGUMENT], like "GET data/* 0.15 answer 503" or "* * 1 delay 20ms";
    /// may be repeated. Faults: delay TIME, stall TIME, stall-body TIME, answer STATUS, cut, shorten, flip,
    /// lose, reset
    #[arg(long = "rule")]
    rules: Vec<Rule>,
}

fn main() -> Result<()> {
    let a = Arguments::parse();
    let proxy = Proxy::listen(a.listen, &a.upstream, a.seed, a.rules).context("failed to start the proxy")?;
    println!("{}", proxy.endpoint());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::signal::ctrl_c()).map_err(|e| anyhow!("failed to wait for Ctrl-C: {e}"))?;
    println!("{}", serde_json::to_string_pretty(&proxy.counts())?);
    Ok(())
}
