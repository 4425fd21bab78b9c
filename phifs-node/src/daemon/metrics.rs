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
        let latencies = self.mount.latencies();
        let name = "phifs_fuse_request_seconds";
        page.metric(name, "histogram", "How long requests of the kernel took until the answer was ready.");
        for of in &latencies {
            page.times(name, &[("kind", of.kind)], &of.within, (of.requests, of.total));
        }
        let begun: u64 = status.requests.values().sum();
        let under_way = begun.saturating_sub(latencies.iter().map(|of| of.requests).sum());
        page.single("phifs_fuse_requests_under_way", GAUGE, "Not answered yet.", under_way);
        let waiting = self.mount.waiting_requests();
        page.single("phifs_fuse_requests_waiting", GAUGE, "Of these, that no thread has begun with.", waiting);
        let read_only = u8::from(volume.read_only.is_some());
        page.single("phifs_read_only", GAUGE, "Whether nothing more is accepted.", read_only);
        page.single("phifs_operations_total", COUNTER, "Operations made here.", volume.operations);
        page.single("phifs_inodes", GAUGE, "Files and directories.", volume.inodes);
        page.single("phifs_open_files", GAUGE, "Files that are open.", volume.open_files);
        page.single("phifs_unpublished_files", GAUGE, "Files written and not published.", volume.unpublished_files);
        page.single("phifs_publisher_queue_files", GAUGE, "Closed, waiting for a publisher.", volume.queued_files);
        let unsealed = volume.unsealed_operations;
        page.single("phifs_unsealed_operations", GAUGE, "Not signed yet, so nobody gets them.", unsealed);
        page.single("phifs_journal_uncommitted_bytes", GAUGE, "Not durable yet.", volume.uncommitted_bytes);
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
        each(page, "phifs_member_connected", "Whether there is a connection.", &|member| {
            Some(member.standing.connected.into())
        });
        each(page, "phifs_member_behind_operations", "Known here and not there.", &|member| member.standing.behind);
        each(page, "phifs_member_behind_bytes", "Of files, not vouched for.", &|member| member.standing.behind_bytes);
        each(page, "phifs_member_behind_seconds", "Age of the oldest operation that it lacks.", &|member| {
            member.standing.behind_secs
        });
        each(page, "phifs_member_heard_seconds", "Since it was heard of.", &|member| member.standing.heard_secs);
        each(page, "phifs_member_requests_under_way", "Of it, being answered here, the link included.", &|member| {
            Some(member.standing.answering)
        });
        page.metric("phifs_member_round_trip_seconds", GAUGE, "Of a packet, there and back.");
        for member in &others {
            if let Some(micros) = member.standing.round_trip_micros {
                let labels = [("member", &*member.name), ("key", &member.key[..8])];
                page.value("phifs_member_round_trip_seconds", &labels, micros as f64 / 1e6);
            }
        }
        let cluster = self.cluster();
        let lacks = cluster.missing_operations;
        page.single("phifs_missing_operations", GAUGE, "That the others know, still to come.", lacks);
        let to_come = cluster.to_come.unwrap_or_default();
        page.single("phifs_missing_glyphs", GAUGE, "To be here, being fetched.", to_come.glyphs);
        page.single("phifs_missing_bytes", GAUGE, "Of files, that these are needed for.", to_come.bytes);
        let held_up = u8::from(cluster.held_up.is_some());
        page.single("phifs_held_up", GAUGE, "Whether what is new elsewhere cannot be taken in.", held_up);
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
