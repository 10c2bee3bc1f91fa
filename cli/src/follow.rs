//! Follows a coordinator's events to the end of the job, showing each.

use crate::{Error, Result, screen::Screen, words};
use proto::{
    Access, AccessArgs,
    v1::{JobEnded, JobEvent, WatchRequest, coordinator_client::CoordinatorClient, job_event::Kind},
};
use tonic::Streaming;

/// Follow a running job: the same display as `marey train`.
#[derive(clap::Args)]
pub struct Args {
    /// The coordinator's address, host:port
    #[arg(long, value_name = "ADDR")]
    coordinator: String,
    #[command(flatten)]
    access: AccessArgs,
}

/// Returns the exit status: 0 if the job ended well.
pub fn command(args: &Args) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Io { path: "the async runtime".into(), source })?;
    let mut screen = Screen::new();
    let ended = runtime.block_on(async {
        let mut events = connect(&args.coordinator, &args.access.read()?).await?;
        follow(&args.coordinator, &mut events, &mut screen).await
    });
    screen.close();
    Ok(u8::from(!ended?.ok))
}

/// Opens the stream of events.
pub async fn connect(address: &str, access: &Access) -> Result<Streaming<JobEvent>> {
    let unreachable = |why: String| Error::Unreachable { address: address.into(), why };
    let reply = CoordinatorClient::new(access.connection(address)?).watch(WatchRequest {}).await;
    Ok(reply.map_err(|s| unreachable(words::refusal(&s)))?.into_inner())
}

/// Shows events until the job has ended.
pub async fn follow(
    address: &str,
    events: &mut Streaming<JobEvent>,
    screen: &mut Screen,
) -> Result<JobEnded> {
    let broken = |why: String| Error::Broken { address: address.into(), why };
    loop {
        match events.message().await {
            Ok(Some(event)) => {
                screen.event(&event);
                if let Some(Kind::Ended(ended)) = event.kind {
                    return Ok(ended);
                }
            }
            Ok(None) => return Err(broken("the coordinator went away before the job ended".into())),
            Err(s) => return Err(broken(words::refusal(&s))),
        }
    }
}
