//! The `ringstore` command. Everything that it does is in `cli`, on top of the library's public
//! API.

mod cli;
#[cfg(feature = "fuse")]
mod mount;
#[cfg(feature = "nbd")]
mod nbd;

fn main() -> std::process::ExitCode {
    cli::main()
}
