//! What the machine itself tells: the disk and its flushes, the caches, space taken, the work a process does.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// As statfs(2) has them: filesystems without a disk behind them.
const TMPFS_MAGIC: i64 = 0x0102_1994;
const RAMFS_MAGIC: i64 = 0x8584_58f6;
const FUSE_MAGIC: i64 = 0x6573_5546;

/// The disk below a directory.
pub struct Disk {
    stat: Option<PathBuf>,
    dir: PathBuf,
}

impl Disk {
    /// Refuses a directory where figures would mean nothing.
    pub fn below(dir: &Path) -> Result<Disk> {
        let kind = rustix::fs::statfs(dir).with_context(|| format!("cannot look at {}", dir.display()))?.f_type;
        let shown = dir.display();
        match kind as i64 {
            TMPFS_MAGIC | RAMFS_MAGIC => {
                bail!(
                    "{shown} lies in memory (tmpfs), where no disk is measured; set BENCH_DIR to a directory on a disk"
                )
            }
            FUSE_MAGIC => bail!("{shown} is a FUSE filesystem; set BENCH_DIR to a directory on a disk"),
            _ => {}
        }
        let device = fs::metadata(dir)?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let block = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok();
        // Flushes of a partition are counted at the whole disk.
        let block = block.map(|block| match block.join("partition").exists() {
            true => block.parent().map_or(block.clone(), Path::to_owned),
            false => block,
        });
        Ok(Disk { stat: block.map(|block| block.join("stat")), dir: dir.to_owned() })
    }

    /// Cache flushes the disk has done; nothing where the kernel does not tell (a filesystem over several disks).
    pub fn flushes(&self) -> Option<u64> {
        let text = fs::read_to_string(self.stat.as_ref()?).ok()?;
        // The 16th field: Documentation/block/stat.rst.
        text.split_whitespace().nth(15)?.parse().ok()
    }

    pub fn ensure_free(&self, bytes: u64, what: &str) -> Result<()> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        let free = stat.f_bavail * stat.f_frsize;
        let (need, have, dir) = (bytes >> 20, free >> 20, self.dir.display());
        ensure!(
            free >= bytes,
            "{what} needs {need} MiB in {dir}, which has {have}; make room, set BENCH_DIR or use a smaller --scale"
        );
        Ok(())
    }

    /// Writes out what is dirty, and tells how long that took.
    pub fn sync(&self) -> Result<Duration> {
        let start = Instant::now();
        rustix::fs::syncfs(File::open(&self.dir)?)?;
        Ok(start.elapsed())
    }
}

/// Processor, kernel and filesystem: what each table must be read with.
pub fn describe(dir: &Path) -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cores = std::thread::available_parallelism()?;
    let output = Command::new("df").arg("--output=fstype").arg(dir).output().context("cannot run df")?;
    let table = String::from_utf8_lossy(&output.stdout);
    let filesystem = table.lines().last().unwrap_or("unknown filesystem");
    Ok(format!("{cores} cores of {model}, Linux {}, {}", kernel.trim(), filesystem.trim()))
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the caches")
}

/// For figures that mean something, if less, without it.
pub fn drop_caches_if_root() -> Result<()> {
    if is_root() { drop_caches() } else { Ok(()) }
}

/// Keeps this thread, and what it starts meanwhile, on one processor until it is dropped.
pub struct Pinned {
    before: CpuSet,
}

pub fn pin(processor: usize) -> Result<Pinned> {
    let pinned = Pinned { before: sched_getaffinity(None)? };
    let mut only = CpuSet::new();
    only.set(processor);
    sched_setaffinity(None, &only).with_context(|| format!("cannot keep to processor {processor}"))?;
    Ok(pinned)
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// What a process has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub cpu_nanos: u64,
    pub written_bytes: u64,
}

impl Work {
    pub fn of(pids: &[u32]) -> Work {
        pids.iter().fold(Work::default(), |sum, pid| Work {
            cpu_nanos: sum.cpu_nanos + cpu_nanos(*pid),
            written_bytes: sum.written_bytes + field(&format!("/proc/{pid}/io"), "write_bytes:").unwrap_or(0),
        })
    }
}

/// The time of all threads that live; to the nanosecond, where /proc/PID/stat has hundredths of a second.
fn cpu_nanos(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let nanos = |task: fs::DirEntry| -> Option<u64> {
        fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    tasks.flatten().filter_map(nanos).sum()
}

pub fn resident_bytes(pid: u32) -> Result<u64> {
    let kib = field(&format!("/proc/{pid}/status"), "VmRSS:").with_context(|| format!("process {pid} is gone"))?;
    Ok(kib * 1024)
}

fn field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// Waits until these processes do nothing any more and `busy` says no, and tells how long they were at work.
///
/// "Nothing" is less than a tenth of a core and next to no writes for longer than any timer of theirs.
pub fn wait_until_quiet(pids: &[u32], mut busy: impl FnMut() -> Result<bool>) -> Result<Duration> {
    const LOOK: Duration = Duration::from_millis(50);
    const QUIET: Duration = Duration::from_millis(900);
    const LIMIT: Duration = Duration::from_secs(900);
    let start = Instant::now();
    let mut worked_last = Duration::ZERO;
    let mut before = (Instant::now(), Work::of(pids));
    while start.elapsed() - worked_last < QUIET {
        ensure!(start.elapsed() < LIMIT, "background work goes on after {} s", LIMIT.as_secs());
        std::thread::sleep(LOOK);
        let busy = busy()?;
        let now = (Instant::now(), Work::of(pids));
        let nanos = now.1.cpu_nanos.saturating_sub(before.1.cpu_nanos);
        let written = now.1.written_bytes - before.1.written_bytes;
        if busy || u128::from(nanos) * 10 > (now.0 - before.0).as_nanos() || written > 64 << 10 {
            worked_last = start.elapsed();
        }
        before = now;
    }
    Ok(worked_last)
}

/// Space taken on the host, as du(1) counts it.
pub fn disk_usage(path: &Path) -> Result<u64> {
    let output = Command::new("du").args(["-s", "--block-size=1"]).arg(path).output().context("cannot run du")?;
    // Files that go away while it looks are no failure.
    let text = String::from_utf8_lossy(&output.stdout);
    let bytes = text.split_whitespace().next().and_then(|bytes| bytes.parse().ok());
    bytes.with_context(|| format!("du {}: {}", path.display(), String::from_utf8_lossy(&output.stderr)))
}

/// Length of all files below a directory.
pub fn file_bytes(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { file_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(sum)
}

/// How much of the files below a directory the page cache holds; nothing without fincore(1).
pub fn cached_bytes(dir: &Path) -> Option<u64> {
    let script = r#"find "$0" -type f -size +0 -print0 | xargs -0 -r fincore --bytes --noheadings --output RES"#;
    let output = Command::new("sh").args(["-c", script]).arg(dir).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let sizes = text.lines().map(|line| line.trim().parse::<u64>()).collect::<Result<Vec<_>, _>>().ok()?;
    (output.status.success() || !sizes.is_empty()).then(|| sizes.iter().sum())
}
