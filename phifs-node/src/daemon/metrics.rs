//! The numbers that the daemon tells.

use super::Daemon;
use crate::metrics::Page;
use crate::net::traffic;
use crate::report::Member;

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

impl Daemon {
    pub(super) fn metrics(&self) -> String {
        let (mut page, status) = (Page::default(), self.status());
        let volume = &status.volume;
        page.metric("phifs_info", GAUGE, "What runs here.");
        page.value("phifs_info", &[("version", &status.version), ("node", &volume.node)], 1);
        page.single("phifs_uptime_seconds", GAUGE, "Since the daemon started.", status.uptime_secs);
        page.metric("phifs_fuse_requests_total", COUNTER, "Requests of the kernel.");
        for (kind, count) in &status.requests {
            page.value("phifs_fuse_requests_total", &[("kind", kind)], count);
        }
        let read_only = u8::from(volume.read_only.is_some());
        page.single("phifs_read_only", GAUGE, "Whether nothing more is accepted.", read_only);
        page.single("phifs_operations_total", COUNTER, "Operations made here.", volume.operations);
        page.single("phifs_inodes", GAUGE, "Files and directories.", volume.inodes);
        page.single("phifs_open_files", GAUGE, "Files that are open.", volume.open_files);
        page.single("phifs_unpublished_files", GAUGE, "Files written and not published.", volume.unpublished_files);
        page.single("phifs_journal_bytes", GAUGE, "Journal behind the last checkpoint.", volume.journal_bytes);
        page.single("phifs_journal_syncs_total", COUNTER, "Syncs of the journal.", volume.journal_syncs);
        if let Ok(usage) = self.engine.usage(&self.store) {
            page.metric("phifs_store_bytes", GAUGE, "What the store takes on the disk.");
            for part in &usage.parts {
                page.value("phifs_store_bytes", &[("part", &part.what)], part.bytes);
            }
            page.single("phifs_logical_bytes", GAUGE, "Sum of all file sizes.", usage.logical_bytes);
            page.single("phifs_disk_free_bytes", GAUGE, "Free below the store.", usage.disk_free_bytes);
            page.single(
                "phifs_disk_total_bytes",
                GAUGE,
                "Size of the filesystem below the store.",
                usage.disk_total_bytes,
            );
        }
        self.network_metrics(&mut page);
        page.finish()
    }

    fn network_metrics(&self, page: &mut Page) {
        let members = self.members().unwrap_or_default();
        page.single("phifs_members", GAUGE, "Machines that have the volume, this one included.", members.len());
        let others: Vec<&Member> = members.iter().filter(|member| !member.this_node).collect();
        let each = |page: &mut Page, name: &str, help: &str, value: &dyn Fn(&Member) -> Option<u64>| {
            page.metric(name, GAUGE, help);
            for member in &others {
                if let Some(value) = value(member) {
                    page.value(name, &[("member", &member.name), ("key", &member.key[..8])], value);
                }
            }
        };
        each(page, "phifs_member_connected", "Whether there is a connection.", &|member| Some(member.connected.into()));
        each(page, "phifs_member_behind_operations", "Known here and not there.", &|member| member.behind);
        each(page, "phifs_member_heard_seconds", "Since it was heard of.", &|member| member.heard_secs);
        let cluster = self.cluster();
        let lacks = cluster.under_replicated_bytes;
        page.single("phifs_under_replicated_bytes", GAUGE, "Not vouched for by all members.", lacks);
        let diverged = u8::from(cluster.divergence.is_some());
        page.single("phifs_diverged", GAUGE, "Whether a member has come to another state.", diverged);
        page.metric("phifs_net_sent_bytes_total", COUNTER, "Sent to other members, by what it was for.");
        for (path, sent, _) in traffic::by_path() {
            page.value("phifs_net_sent_bytes_total", &[("path", path)], sent);
        }
        page.metric("phifs_net_received_bytes_total", COUNTER, "Received from other members, by what it was for.");
        for (path, _, received) in traffic::by_path() {
            page.value("phifs_net_received_bytes_total", &[("path", path)], received);
        }
        page.metric("phifs_net_refused_total", COUNTER, "What was not let through.");
        for (why, count) in traffic::refusals() {
            page.value("phifs_net_refused_total", &[("what", why)], count);
        }
    }
}
