//! File systems of a test's own, in an image that is mounted over a loop device. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A mounted file system; unmounted and removed when dropped.
pub(crate) struct LoopFs {
    temp: TempDir,
}

impl LoopFs {
    /// Makes a file system of this kind (`ext4` or `xfs`) and mounts it.
    ///
    /// `None`, with the reason printed, where that is impossible.
    pub(crate) fn make(kind: &str, mib: u64) -> Option<LoopFs> {
        let fs = LoopFs {
            temp: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(fs.dir()).unwrap();
        let image = std::fs::File::create(fs.image()).unwrap();
        image.set_len(mib << 20).unwrap();
        drop(image);
        let force = if kind == "xfs" { "-f" } else { "-F" };
        let image = fs.image();
        let result = command(&format!("mkfs.{kind}"), &["-q", force], &[&image])
            .and_then(|()| command("mount", &["-o", "loop"], &[&image, &fs.dir()]));
        match result {
            Ok(()) => Some(fs),
            Err(error) => {
                println!("SKIPPED a loop-mounted {kind}: {error}");
                None
            }
        }
    }

    fn image(&self) -> PathBuf {
        self.temp.path().join("image")
    }

    /// Where it is mounted.
    pub(crate) fn dir(&self) -> PathBuf {
        self.temp.path().join("mnt")
    }

    /// Mounts it again, read-only or not.
    pub(crate) fn remount(&self, option: &str) {
        let options = ["-o", &format!("remount,{option}")];
        command("mount", &options, &[&self.dir()]).unwrap();
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        let dir = self.dir();
        // Threads of a store that a failed test dropped may still be there: then it goes later.
        let _ = command("umount", &[], &[&dir]).or_else(|_| command("umount", &["-l"], &[&dir]));
    }
}

fn command(program: &str, options: &[&str], paths: &[&Path]) -> Result<(), String> {
    let output = Command::new(program).args(options).args(paths).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}
