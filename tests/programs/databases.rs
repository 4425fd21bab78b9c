//! Databases: they notice a lost or reordered write sooner than any other program, and say what they acknowledged.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use phifs_tests::{Background, Place, both_modes, long, run, run_ok, skip, wait_until};
use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(120);

/// Commits one row after another and tells each number after its commit, to a file outside the mount.
const COMMITS: &str = r#"
import os, sqlite3, sys
path, mode, log = sys.argv[1:]
db = sqlite3.connect(path, isolation_level=None, timeout=30)
db.execute("pragma journal_mode=" + mode)
# Not "full": with a rollback journal that leaves the unlink which commits unsynced.
db.execute("pragma synchronous=extra")
db.execute("create table if not exists t(id integer primary key, body blob)")
n = db.execute("select coalesce(max(id), 0) from t").fetchone()[0]
out = open(log, "a", buffering=1)
while True:
    n += 1
    db.execute("begin")
    db.execute("insert into t values(?, randomblob(?))", (n, n % 3000))
    db.execute("update t set body = randomblob(100) where id = ?", (n // 2,))
    db.execute("commit")
    # sqlite takes a directory that it cannot open for one that needs no sync (unixDelete), so a commit whose journal
    # was unlinked just before the filesystem died "succeeds" unsynced. An acknowledgement counts if it still lived.
    os.statvfs(path)
    out.write("%d\n" % n)
"#;

fn sqlite_survives(place: &mut Place, mode: &str) {
    let outside = tempfile::tempdir().unwrap();
    let (log, db) = (outside.path().join("log"), place.dir().join("db"));
    let rounds = if long() { 12 } else { 4 };
    for round in 0..rounds {
        let committed = || fs::read_to_string(&log).unwrap_or_default().lines().count();
        let before = committed();
        let mut writer = Background::start(
            Command::new("python3")
                .args(["-c", COMMITS])
                .arg(&db)
                .arg(mode)
                .arg(&log)
                .stderr(std::process::Stdio::null()),
        );
        assert!(wait_until(LIMIT, || committed() > before + 50), "sqlite commits nothing");
        // A killed program only, and a filesystem that dies under it.
        if round % 2 == 0 {
            writer.kill();
        } else {
            place.crash(|| writer.kill());
        }
        let last = fs::read_to_string(&log).unwrap().lines().last().unwrap().to_owned();
        let ask = |question: &str| {
            run_ok(Command::new("sqlite3").arg(&db).arg(question), LIMIT).stdout_text().trim().to_owned()
        };
        assert_eq!(ask("pragma integrity_check"), "ok", "round {round}");
        let lost = ask(&format!("select {last} - count(*) from t where id <= {last}"));
        assert_eq!(lost, "0", "round {round}: committed rows are lost, {last} were acknowledged");
    }
    place.assert_healthy();
}

both_modes!(sqlite_with_a_write_ahead_log_survives_kills, |place| sqlite_survives(place, "wal"));
both_modes!(sqlite_with_a_rollback_journal_survives_kills, |place| sqlite_survives(place, "delete"));

/// A Postgres server with its data on the mount and its socket outside.
struct Postgres {
    bin: PathBuf,
    data: PathBuf,
    socket: tempfile::TempDir,
}

impl Postgres {
    fn installed() -> Option<PathBuf> {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
        versions.flatten().map(|entry| entry.path().join("bin")).find(|bin| bin.join("initdb").exists())
    }

    fn as_postgres(&self, program: &str) -> Command {
        // Not `runuser`: that one stays in between, and a killed server would wait there as a zombie.
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
        command.arg(self.bin.join(program)).current_dir("/");
        command.env("PGHOST", self.socket.path()).env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        command
    }

    /// Starts the server and waits for the end of its recovery.
    fn start(&self) -> Background {
        let log = File::options().create(true).append(true).open(self.socket.path().join("log")).unwrap();
        let mut command = self.as_postgres("postgres");
        command.arg("-D").arg(&self.data).arg("-k").arg(self.socket.path()).args(["-h", ""]);
        let server = Background::start(command.stdout(log.try_clone().unwrap()).stderr(log));
        let ready = wait_until(LIMIT, || run(&mut self.as_postgres("pg_isready"), LIMIT).success());
        let log = || fs::read_to_string(self.socket.path().join("log")).unwrap_or_default();
        assert!(ready, "postgres does not come up:\n{}", log());
        server
    }

    /// `kill -9` of the server and of its children, which lead sessions of their own and live a little longer.
    fn kill(&self, server: &mut Background) {
        server.kill();
        let gone = wait_until(LIMIT, || {
            let processes = fs::read_dir("/proc").unwrap().flatten();
            let ours =
                processes.filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == self.data));
            let pids = ours.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
            let alive: Vec<Pid> = pids.collect();
            for pid in &alive {
                let _ = kill_process(*pid, Signal::KILL);
            }
            alive.is_empty()
        });
        assert!(gone, "processes of the killed server stay");
    }

    fn ask(&self, question: &str) -> String {
        run_ok(self.as_postgres("psql").args(["-XAtc", question]), LIMIT).stdout_text().trim().to_owned()
    }

    /// The number of transactions of which pgbench logged the end.
    fn logged(dir: &Path) -> usize {
        let logs = fs::read_dir(dir).unwrap().flatten().filter(|entry| entry.file_name() != "log");
        logs.map(|entry| fs::read_to_string(entry.path()).unwrap_or_default().lines().count()).sum()
    }
}

both_modes!(postgres_recovers_after_kills, |place| {
    let Some(bin) = Postgres::installed() else { skip!("postgres is not installed: run tools/test") };
    let socket = tempfile::Builder::new().prefix("pg-").tempdir().unwrap();
    let logs = tempfile::Builder::new().prefix("pglog-").tempdir().unwrap();
    let owner = String::from_utf8(run_ok(Command::new("id").args(["-u", "postgres"]), LIMIT).stdout).unwrap();
    let owner: u32 = owner.trim().parse().unwrap();
    let data = place.dir().join("pg");
    fs::create_dir(&data).unwrap();
    for dir in [&data, socket.path(), logs.path()] {
        chown(dir, Some(owner), None).unwrap();
    }
    let postgres = Postgres { bin, data, socket };
    run_ok(postgres.as_postgres("initdb").args(["-A", "trust", "--data-checksums", "-D"]).arg(&postgres.data), LIMIT);
    let mut server = postgres.start();
    run_ok(postgres.as_postgres("pgbench").args(["-i", "-q", "-s", "2"]), LIMIT);
    let rounds = if long() { 6 } else { 2 };
    for round in 0..rounds {
        let prefix = logs.path().join(format!("round{round}"));
        let mut bench = postgres.as_postgres("pgbench");
        // Without -n it would empty the history at its start.
        bench.args(["-n", "-c", "4", "-T", "60", "-l", "--log-prefix"]).arg(prefix);
        bench.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut bench = Background::start(&mut bench);
        std::thread::sleep(Duration::from_secs(4));
        if round % 2 == 0 {
            postgres.kill(&mut server);
        } else {
            place.crash(|| postgres.kill(&mut server));
        }
        bench.kill();
        server = postgres.start();
        let sums = postgres.ask(
            "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches)
                and (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from pgbench_tellers)
                and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)",
        );
        assert_eq!(sums, "t", "round {round}: the sums of the accounts do not agree");
        let kept: usize = postgres.ask("select count(*) from pgbench_history").parse().unwrap();
        let logged = Postgres::logged(logs.path());
        assert!(kept >= logged && kept > 0, "round {round}: {logged} transactions were acknowledged, {kept} are there");
    }
    run_ok(postgres.as_postgres("pg_ctl").args(["stop", "-m", "fast", "-D"]).arg(&postgres.data), LIMIT);
    drop(server);
    let checked = run_ok(postgres.as_postgres("pg_checksums").args(["--check", "-D"]).arg(&postgres.data), LIMIT);
    assert!(checked.stdout_text().contains("Bad checksums:  0"), "{checked}");
    place.assert_healthy();
});
