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

/// What a machine has sent, with all headers, and what its receivers of datagrams had no room for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    pub bytes: u64,
    pub packets: u64,
    pub dropped: u64,
}

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

    /// What each machine has sent and lost so far. On loopback that is what the host has sent to itself, as of the first.
    pub fn traffic(&self) -> Result<Vec<Traffic>> {
        match self.loopback {
            Some(_) => Ok(vec![Traffic::of("self", "lo")?]),
            None => {
                let holders = self.seats.iter().filter_map(|seat| seat.holder);
                holders.map(|pid| Traffic::of(&pid.to_string(), INTERFACE)).collect()
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

impl Traffic {
    fn of(process: &str, interface: &str) -> Result<Traffic> {
        let table = |name: &str| {
            let path = format!("/proc/{process}/net/{name}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let (bytes, packets) = sent(&table("dev")?, interface).with_context(|| format!("there is no {interface}"))?;
        Ok(Traffic { bytes, packets, dropped: dropped(&table("snmp")?).context("nobody counts datagrams")? })
    }

    pub fn since(self, before: Traffic) -> Traffic {
        Traffic {
            bytes: self.bytes - before.bytes,
            packets: self.packets - before.packets,
            dropped: self.dropped - before.dropped,
        }
    }
}

impl std::iter::Sum for Traffic {
    fn sum<I: Iterator<Item = Traffic>>(all: I) -> Traffic {
        all.fold(Traffic::default(), |sum, one| Traffic {
            bytes: sum.bytes + one.bytes,
            packets: sum.packets + one.packets,
            dropped: sum.dropped + one.dropped,
        })
    }
}

/// The ninth and the tenth number of its line: proc_pid_net(5).
fn sent(table: &str, interface: &str) -> Option<(u64, u64)> {
    let line = table.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == interface)?.1;
    let mut numbers = line.split_whitespace().skip(8).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A line of names is followed by one of numbers.
fn dropped(table: &str) -> Option<u64> {
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Udp:"));
    let at = lines.next()?.split_whitespace().position(|name| name == "RcvbufErrors")?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sent_bytes_are_those_of_the_interface() {
        let table = "Inter-|   Receive   |  Transmit\n face |bytes    packets\n    \
            lo:  11 1 0 0 0 0 0 0  12 1 0 0 0 0 0 0\n  eth0: 21 1 0 0 0 0 0 0 22 2 0 0 0 0 0 0\n";
        assert_eq!((sent(table, "eth0"), sent(table, "lo")), (Some((22, 2)), Some((12, 1))));
        assert_eq!(sent(table, "eth"), None);
    }

    #[test]
    fn dropped_datagrams_are_found_by_name() {
        let table = "Tcp: A\nTcp: 1\nUdp: InDatagrams InErrors RcvbufErrors\nUdp: 10 4 3\nUdpLite: RcvbufErrors\n";
        assert_eq!(dropped(table), Some(3));
        assert_eq!(dropped("Udp: InDatagrams\nUdp: 10\n"), None);
    }
}
