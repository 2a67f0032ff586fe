//! Setting a ring up, and why the kernel may refuse one.
//!
//! Invariants:
//! 1. A ring that is handed out can do every operation that the driver uses; nothing is found
//!    missing later.
//!
//! Deliberately not here: what to do about it. Falling back is the launcher's choice.

use crate::error::{Error, ErrorKind};
use io_uring::{Builder, IoUring, Probe, cqueue, opcode, squeue};
use std::fmt;
use std::io;

/// The operations that the driver uses. The youngest, MKDIRAT, came with Linux 5.15.
const OPCODES: [u8; 9] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::OpenAt2::CODE,
    opcode::MkDirAt::CODE,
    opcode::UnlinkAt::CODE,
    opcode::RenameAt::CODE,
    opcode::AsyncCancel::CODE,
];

/// Where an administrator may have switched io_uring off.
const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";

/// Why there is no ring.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The sysctl kernel.io_uring_disabled, with its value.
    SwitchedOff(u8),
    /// EPERM without that: a seccomp profile, as Docker's default one, or a security module.
    Forbidden,
    /// ENOSYS, or something that the driver needs is missing.
    TooOld,
    /// ENOMEM: RLIMIT_MEMLOCK, or no memory.
    MemoryLocked,
    /// EMFILE or ENFILE.
    NoDescriptors,
    Other(io::Error),
}

impl Refusal {
    /// Names the cause behind an error of `io_uring_setup`.
    pub(crate) fn from_setup(error: io::Error) -> Refusal {
        use nix::libc;
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => match switched_off() {
                0 => Refusal::Forbidden,
                level => Refusal::SwitchedOff(level),
            },
            Some(libc::ENOSYS) => Refusal::TooOld,
            Some(libc::ENOMEM) => Refusal::MemoryLocked,
            Some(libc::EMFILE | libc::ENFILE) => Refusal::NoDescriptors,
            _ => Refusal::Other(error),
        }
    }

    /// Two of the causes are limits, which `Full` asks to raise. The others are the host's:
    /// io_uring is unavailable until somebody changes that, and no change of the call would help.
    fn kind(&self) -> ErrorKind {
        match self {
            Refusal::MemoryLocked | Refusal::NoDescriptors => ErrorKind::Full,
            // Another driver has to be chosen, or the machine set up otherwise: no retry helps.
            Refusal::SwitchedOff(_) | Refusal::Forbidden | Refusal::TooOld | Refusal::Other(_) => {
                ErrorKind::InvalidInput
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::SwitchedOff(1) => f.write_str(
                "switched off for unprivileged processes: set the sysctl \
                 kernel.io_uring_disabled=0, or join the group kernel.io_uring_group",
            ),
            Refusal::SwitchedOff(level) => write!(
                f,
                "switched off: set the sysctl kernel.io_uring_disabled=0, it is {level}"
            ),
            Refusal::Forbidden => f.write_str(
                "forbidden by a seccomp profile or a security module: allow io_uring_setup, \
                 io_uring_enter and io_uring_register (Docker's default profile has none of them)",
            ),
            Refusal::TooOld => f.write_str(
                "missing or too old in this kernel or sandbox: Linux 5.15 is needed, 6.1 is better",
            ),
            Refusal::MemoryLocked => f.write_str(
                "no memory may be locked for it: raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=)",
            ),
            Refusal::NoDescriptors => f.write_str(
                "no file descriptors are left: raise RLIMIT_NOFILE (ulimit -n, LimitNOFILE=)",
            ),
            Refusal::Other(error) => write!(f, "refused by the kernel: cause={error}"),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        let message = format!(
            "io_uring is {refusal}; or choose the driver threads, or auto, which falls back to it"
        );
        Error::with_source(refusal.kind(), message, refusal)
    }
}

/// Whether a ring can be had here and now.
#[cfg(any(test, feature = "glommio", feature = "tokio-uring"))]
pub(crate) fn probe() -> Result<(), Refusal> {
    build(8).map(drop)
}

/// Sets a ring up with the best flags that this kernel takes.
pub(super) fn build(entries: u32) -> Result<IoUring, Refusal> {
    type Setup = Builder<squeue::Entry, cqueue::Entry>;
    // From 6.1 on; completions are posted when we ask for them, never in the middle of our work.
    let deferred = |setup: &mut Setup| {
        setup
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag();
    };
    // From 5.19 on; completions interrupt nobody.
    let cooperative = |setup: &mut Setup| {
        setup
            .setup_submit_all()
            .setup_coop_taskrun()
            .setup_taskrun_flag();
    };
    let plain = |_: &mut Setup| {};
    let choices: [&dyn Fn(&mut Setup); 3] = [&deferred, &cooperative, &plain];
    let mut last = None;
    for choice in choices {
        let mut setup = IoUring::builder();
        setup.dontfork();
        choice(&mut setup);
        match setup.build(entries) {
            Ok(ring) => return check(ring),
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => last = Some(error),
            Err(error) => return Err(Refusal::from_setup(error)),
        }
    }
    let error = last.unwrap_or_else(|| io::Error::from_raw_os_error(nix::libc::EINVAL));
    Err(Refusal::from_setup(error))
}

/// Refuses a ring that lacks what the driver relies on.
fn check(ring: IoUring) -> Result<IoUring, Refusal> {
    let params = ring.params();
    // Without them a flood loses completions, and a wait has no timeout.
    if !params.is_feature_nodrop() || !params.is_feature_ext_arg() {
        return Err(Refusal::TooOld);
    }
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(Refusal::from_setup)?;
    match OPCODES.iter().all(|&code| probe.is_supported(code)) {
        true => Ok(ring),
        false => Err(Refusal::TooOld),
    }
}

/// The sysctl's value: 0, io_uring is on; 1, for the privileged; 2, off.
fn switched_off() -> u8 {
    let text = std::fs::read_to_string(SYSCTL).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc;

    #[test]
    fn causes_are_told_apart() {
        for (errno, kind, word) in [
            (libc::ENOSYS, ErrorKind::InvalidInput, "too old"),
            (libc::ENOMEM, ErrorKind::Full, "RLIMIT_MEMLOCK"),
            (libc::EMFILE, ErrorKind::Full, "RLIMIT_NOFILE"),
            (
                libc::EINVAL,
                ErrorKind::InvalidInput,
                "refused by the kernel",
            ),
        ] {
            let error = Error::from(Refusal::from_setup(io::Error::from_raw_os_error(errno)));
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(word), "{error}");
        }
        let error = Error::from(Refusal::SwitchedOff(2));
        assert!(error.to_string().contains("io_uring_disabled=0"), "{error}");
        let error = Error::from(Refusal::Forbidden);
        assert!(error.to_string().contains("seccomp"), "{error}");
    }
}
