//! Compiles the contract with protox, so that no protoc need be installed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=protos");
    let files = protox::compile(["marey/v1/marey.proto"], ["protos"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
