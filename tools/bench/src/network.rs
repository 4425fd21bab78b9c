//! Machines that are none: network namespaces, joined by a switch, on which daemons run that share nothing else than the
//! processors and the disk.
//!
//! A namespace is held by a process that waits for the end of its input, and that ends with the bench, however that ends.
//! With its last process a namespace goes by itself, and its interfaces with it. Where namespaces are not permitted all
//! machines are one, on loopback.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::systems::succeed;

const PORT: u16 = 7447;
/// What every machine calls its interface.
const INTERFACE: &str = "eth0";

pub struct Network {
    pub seats: Vec<Seat>,
    /// Why it is loopback, if it is.
    pub loopback: Option<String>,
    /// In the order of `seats`, the switch last.
    _holders: Vec<Holder>,
}

/// Where programs of one of the machines run.
#[derive(Clone)]
pub struct Seat {
    pub address: IpAddr,
    /// A process in its namespace.
    holder: Option<u32>,
}

struct Holder(Child);

impl Network {
    pub fn new(machines: usize) -> Network {
        Network::of_namespaces(machines).unwrap_or_else(|why| {
            let seat = Seat { address: Ipv4Addr::LOCALHOST.into(), holder: None };
            Network { seats: vec![seat; machines], loopback: Some(format!("{why:#}")), _holders: Vec::new() }
        })
    }

    fn of_namespaces(machines: usize) -> Result<Network> {
        let mut holders = (0..=machines).map(|_| Holder::start()).collect::<Result<Vec<_>>>()?;
        let switch = holders.pop().context("one more than machines")?;
        ip(switch.pid(), "link add name switch type bridge")?;
        ip(switch.pid(), "link set switch up")?;
        let mut seats = Vec::new();
        for (n, holder) in holders.iter().enumerate() {
            let address = Ipv4Addr::new(10, 0, 0, 1 + u8::try_from(n)?);
            let far = holder.pid();
            ip(switch.pid(), &format!("link add port{n} type veth peer name {INTERFACE} netns {far}"))?;
            ip(switch.pid(), &format!("link set port{n} master switch up"))?;
            ip(far, &format!("addr add {address}/24 dev {INTERFACE}"))?;
            ip(far, &format!("link set {INTERFACE} up"))?;
            ip(far, "link set lo up")?;
            seats.push(Seat { address: address.into(), holder: Some(far) });
        }
        holders.push(switch);
        Ok(Network { seats, loopback: None, _holders: holders })
    }

    /// Has the interfaces carry packets as a wire would. Otherwise many travel as one, with one set of headers.
    pub fn send_single_packets(&self) -> Result<()> {
        let holders = self.seats.iter().filter_map(|seat| seat.holder);
        holders.into_iter().try_for_each(|pid| ip(pid, &format!("link set {INTERFACE} gso_max_segs 1")))
    }

    /// What each machine has sent so far, with all headers. On loopback all that the host has sent to itself, as that of
    /// the first.
    pub fn sent_bytes(&self) -> Result<Vec<u64>> {
        match self.loopback {
            Some(_) => Ok(vec![sent("/proc/net/dev", "lo")?]),
            None => {
                let holders = self.seats.iter().filter_map(|seat| seat.holder);
                holders.map(|pid| sent(&format!("/proc/{pid}/net/dev"), INTERFACE)).collect()
            }
        }
    }

    /// What a figure has to say about it.
    pub fn describe(&self) -> String {
        match &self.loopback {
            None => "network namespaces".to_owned(),
            Some(why) => format!("on loopback, as there are no network namespaces ({why})"),
        }
    }
}

impl Seat {
    /// A program that will run there.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        match self.holder {
            None => Command::new(program),
            Some(pid) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", namespace(pid).display())).arg(program);
                command
            }
        }
    }

    /// Where a daemon listens.
    pub fn listen(&self) -> String {
        format!("{}:{}", self.address, if self.holder.is_some() { PORT } else { 0 })
    }
}

impl Holder {
    fn start() -> Result<Holder> {
        let child = Command::new("unshare").args(["--net", "cat"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut holder = Holder(child.context("cannot start unshare(1)")?);
        let (start, own) = (Instant::now(), fs::read_link("/proc/self/ns/net")?);
        // It is there before it has left the namespace of its parent.
        while fs::read_link(namespace(holder.pid())).ok().is_none_or(|its| its == own) {
            let ended = holder.0.try_wait()?;
            ensure!(ended.is_none(), "`unshare --net` is not permitted");
            ensure!(start.elapsed() < Duration::from_secs(5), "`unshare --net` does not come to an end");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(holder)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn namespace(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

fn ip(pid: u32, arguments: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace(pid).display())).arg("ip").args(arguments.split(' '));
    succeed(&mut command).map(drop)
}

fn sent(table: &str, interface: &str) -> Result<u64> {
    let text = fs::read_to_string(table).with_context(|| format!("cannot read {table}"))?;
    sent_in(&text, interface).with_context(|| format!("{table} does not have {interface}"))
}

/// The ninth number of its line: proc_pid_net(5).
fn sent_in(table: &str, interface: &str) -> Option<u64> {
    let numbers = |line: &str| -> Option<u64> {
        let (name, numbers) = line.split_once(':')?;
        (name.trim() == interface).then(|| numbers.split_whitespace().nth(8)?.parse().ok())?
    };
    table.lines().find_map(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sent_bytes_are_those_of_the_interface() {
        let table = "Inter-|   Receive   |  Transmit\n face |bytes    packets\n    \
            lo:  11 1 0 0 0 0 0 0  12 1 0 0 0 0 0 0\n  eth0: 21 1 0 0 0 0 0 0 22 1 0 0 0 0 0 0\n";
        assert_eq!((sent_in(table, "eth0"), sent_in(table, "lo")), (Some(22), Some(12)));
        assert_eq!(sent_in(table, "eth"), None);
    }
}
