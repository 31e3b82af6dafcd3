//! A release, and the waivers that it may rest on.

use jiff::Timestamp;
use patchlab_lab::report::Report;
use patchlab_protocol::{Digest, Envelope, Refusal, Refused};
use serde_json::json;

use super::{Pipeline, PipelineError};
use crate::{
    audit::Event,
    gate,
    store::{StoreError, Ties},
    trust::signer::{Answer, Request, SignerError, WAIVERS_PER_REQUEST},
};

impl Pipeline {
    /// Has the signer sign a release over the newest verdict, with the waivers that it needs. The gate is asked here for an early answer, and
    /// by the signer for the one that counts. A no is written into the audit log.
    pub async fn release(&self, name: &str, actor: &str) -> Result<Digest, PipelineError> {
        let order = self.store.order(name)?;
        let envelope = self.store.envelope(&order.digest)?;
        let verdict = self.store.verdict(&order.digest)?;
        let read = verdict.as_ref().map(|row| Report::from_json(row.json.as_bytes())).transpose()?;
        let given = self.store.waivers(&order.digest)?;
        let given = given.iter().take(WAIVERS_PER_REQUEST).map(|waiver| self.store.envelope(&waiver.digest));
        let given = given.collect::<Result<Vec<_>, _>>()?;
        let standing = self.authority.standing();
        let (root, revoked) = (&standing.root().root, standing.revoked());
        let by = order.superseded.as_deref();
        let asked = gate::not_revoked(&revoked, [("order", Some(order.digest))])
            .and_then(|()| gate::not_superseded(&order.id, by, Refusal::NotReleased))
            .and_then(|()| gate::release(root, &envelope, read.as_ref(), &given, &revoked, Timestamp::now()));
        let waivers = self.note_refusal("release-refused", &order.id, actor, asked)?.proof.waivers;
        let json = verdict.map(|row| row.json).unwrap_or_default();
        let signer = self.signer.as_ref().ok_or(SignerError::Absent)?;
        let release = match signer.release(&Request { order: envelope.clone(), verdict: json, waivers }).await? {
            Answer::Released(release) => release,
            Answer::Refused { refusal, reason } => return Err(Refused::new(refusal, reason).into()),
        };
        let counts = gate::check_release(root, &envelope, &release, &revoked, Timestamp::now())?;
        let waivers: Vec<Digest> = counts.waivers.iter().map(|counted| counted.digest).collect();
        let said: Vec<String> = counts.waivers.iter().map(ToString::to_string).collect();
        let supersedes = gate::submit(root, &envelope)?.supersedes;
        let detail = json!({
            "release": release.digest(), "result": counts.release.result, "waivers": said, "supersedes": supersedes,
        });
        let event = Event::new("order-released", &order.id, detail).by(actor);
        let ties = Ties { waivers: &waivers, supersedes: &supersedes };
        Ok(self.store.release(&order.digest, &release, ties, &event)?)
    }

    /// Takes a waiver in, signed elsewhere: of something that the lab found, and of nothing else.
    pub fn waive(&self, name: &str, envelope: &Envelope, actor: &str) -> Result<Digest, PipelineError> {
        let order = self.store.order(name)?;
        let written = self.store.envelope(&order.digest)?;
        let verdict = self.store.verdict(&order.digest)?;
        let read = verdict.map(|row| Report::from_json(row.json.as_bytes())).transpose()?;
        let standing = self.authority.standing();
        let (root, revoked) = (&standing.root().root, standing.revoked());
        let asked = gate::not_revoked(&revoked, [("order", Some(order.digest))])
            .and_then(|()| gate::waive(root, &written, read.as_ref(), envelope, &revoked, Timestamp::now()));
        let waiver = self.note_refusal("waiver-refused", &order.id, actor, asked)?;
        let detail = json!({
            "waiver": envelope.digest(), "waived": waiver.waived, "baseline": waiver.baseline, "class": waiver.class.to_string(),
            "hosts_at_most": waiver.hosts_at_most, "owner": waiver.owner, "reason": waiver.reason,
            "not_after": waiver.not_after, "signers": envelope.claimed_signers(),
        });
        Ok(self.store.waive(envelope, &waiver, &Event::new("order-waived", &order.id, detail).by(actor))?)
    }

    /// Whether an order stays on as many hosts as the waivers of its release are for, under however many approvals.
    pub(super) fn within_waivers(
        &self,
        order: &Digest,
        release: Option<Digest>,
        hosts: &[String],
    ) -> Result<Result<(), Refused>, StoreError> {
        let waivers = release.map(|release| self.store.waivers_of_release(&release)).transpose()?.unwrap_or_default();
        let Some(least) = waivers.iter().min_by_key(|waiver| waiver.hosts_at_most) else { return Ok(Ok(())) };
        let mut all = self.store.hosts_of(order)?;
        all.extend(hosts.iter().cloned());
        all.sort();
        all.dedup();
        if all.len() as u64 <= least.hosts_at_most {
            return Ok(Ok(()));
        }
        let reason = format!("it would have been given to {} hosts, and {}", all.len(), least.line());
        Ok(Err(Refused::new(Refusal::NotApproved, reason)))
    }
}
