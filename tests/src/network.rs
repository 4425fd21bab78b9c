//! Machines of a test with a network of their own, whose cables can be pulled.
//!
//! Each host is a network namespace that only the test and the programs in it hold open: it has no name, and nothing of
//! it is to be seen outside. With the last of them it is gone, cables included, however the test ends.
//!
//! ```text
//! host 0: eth0 10.7.7.1 --- port0 \
//! host 1: eth0 10.7.7.2 --- port1 - bridge, in a namespace of its own
//! host 2: eth0 10.7.7.3 --- port2 /
//! ```

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// The network as one machine sees it. Who starts programs in it may outlive the [`Network`].
#[derive(Clone)]
pub struct Host(Arc<File>);

impl Host {
    fn new() -> io::Result<Host> {
        let make = || {
            // SAFETY: only the network stops being shared, with a thread that ends right away; no file descriptor does.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            File::open("/proc/thread-self/ns/net")
        };
        let made = thread::spawn(make).join().expect("a thread that opens a file")?;
        Ok(Host(Arc::new(made)))
    }

    /// Lets a program run on this host. It sees the same files.
    pub fn enter<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let namespace = self.0.clone();
        let enter = move || Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?);
        // SAFETY: the closure makes one system call, which is safe between fork and exec.
        unsafe { command.pre_exec(enter) }
    }

    /// Runs lines as `ip` takes them after its name.
    pub fn ip(&self, lines: &str) -> io::Result<()> {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.enter(&mut command).spawn()?;
        child.stdin.take().expect("a pipe").write_all(lines.as_bytes())?;
        let ran = child.wait_with_output()?;
        let failed = || io::Error::other(format!("ip: {lines}: {}", String::from_utf8_lossy(&ran.stderr)));
        if ran.status.success() { Ok(()) } else { Err(failed()) }
    }

    fn tc(&self, words: &[&str]) -> io::Result<()> {
        let mut command = Command::new("tc");
        let ran = self.enter(command.arg("qdisc").args(words)).output()?;
        let failed = || io::Error::other(format!("tc: {}", String::from_utf8_lossy(&ran.stderr)));
        if ran.status.success() { Ok(()) } else { Err(failed()) }
    }

    /// As other processes find it while this one lives.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Hosts that reach each other through one switch.
pub struct Network {
    switch: Host,
    hosts: Vec<Host>,
}

impl Network {
    /// Fails where namespaces, bridges or `ip` are not to be had.
    pub fn new(hosts: usize) -> io::Result<Network> {
        let switch = Host::new()?;
        switch.ip("link add bridge type bridge forward_delay 0\nlink set bridge up\n")?;
        let mut network = Network { switch, hosts: Vec::new() };
        for at in 0..hosts {
            let host = Host::new()?;
            network.switch.ip(&format!(
                "link add port{at} type veth peer name eth0 netns {}\nlink set port{at} master bridge up\n",
                host.path()
            ))?;
            let address = network.address(at);
            host.ip(&format!("link set lo up\naddress add {address}/24 dev eth0\nlink set eth0 up\n"))?;
            network.hosts.push(host);
        }
        Ok(network)
    }

    pub fn host(&self, at: usize) -> &Host {
        &self.hosts[at]
    }

    /// The address that it was given at first.
    pub fn address(&self, at: usize) -> String {
        format!("10.7.7.{}", at + 1)
    }

    /// Pulls the cable of a host. Its kernel knows, and says so to whoever sends.
    #[track_caller]
    pub fn cut(&self, at: usize) {
        self.set(at, "down");
    }

    #[track_caller]
    pub fn mend(&self, at: usize) {
        self.set(at, "up");
    }

    #[track_caller]
    fn set(&self, at: usize, to: &str) {
        self.hosts[at].ip(&format!("link set eth0 {to}\n")).expect("a link that can be set");
    }

    /// A host sends so many bits in a second from now on, as tc(8) writes it. Fails where `tc` is not to be had.
    pub fn slow_down(&self, at: usize, rate: &str) -> io::Result<()> {
        self.hosts[at].tc(&["add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "32kb", "latency", "100ms"])
    }

    pub fn speed_up(&self, at: usize) -> io::Result<()> {
        self.hosts[at].tc(&["del", "dev", "eth0", "root"])
    }

    /// The switch passes nothing on between these hosts from now on, which nobody is told; all others are reached by them.
    #[track_caller]
    pub fn keep_apart(&self, hosts: &[usize]) {
        self.isolate(hosts, "on");
    }

    #[track_caller]
    pub fn bring_together(&self, hosts: &[usize]) {
        self.isolate(hosts, "off");
    }

    #[track_caller]
    fn isolate(&self, hosts: &[usize], to: &str) {
        let line = |at: &usize| format!("link set port{at} type bridge_slave isolated {to}\n");
        self.switch.ip(&hosts.iter().map(line).collect::<String>()).expect("ports that can be set");
    }
}
