//! What was refused, where the RFCs count it and the engine's own tables do not show it, or not all of it: `usmStats` (RFC 3414) and
//! `snmpUnknownContexts` (RFC 3413, SNMP-TARGET-MIB).

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU32, Ordering},
};

use async_snmp::{
    Agent, BoxFuture, GetNextResult, GetResult, HandlerResult, MibHandler, Oid, OidTable, RequestContext,
};
use async_snmp::{Value, VarBind};

/// `usmStats` of SNMP-USER-BASED-SM-MIB (RFC 3414).
pub const USM: &[u32] = &[1, 3, 6, 1, 6, 3, 15, 1, 1];
/// `snmpTargetObjects` of SNMP-TARGET-MIB (RFC 3413).
pub const TARGET: &[u32] = &[1, 3, 6, 1, 6, 3, 12, 1];
/// `snmpUnknownContexts` there.
const UNKNOWN_CONTEXTS: u32 = 5;

/// Who counts: the engine, and the front before it, which sees users speak below their level. Known once both are there.
pub type Counting = Arc<OnceLock<(Agent, Arc<AtomicU32>)>>;

/// Counters below one of the places.
pub struct Counters {
    place: &'static [u32],
    counting: Counting,
}

impl Counters {
    /// Those below `place`, [`USM`] or [`TARGET`].
    pub fn below(place: &'static [u32], counting: Counting) -> Self {
        Self { place, counting }
    }

    fn table(&self) -> OidTable<Value> {
        let Some((engine, below_level)) = self.counting.get() else { return OidTable::from_iter([]) };
        let counters = match self.place {
            TARGET => vec![(UNKNOWN_CONTEXTS, engine.snmp_unknown_contexts())],
            _ => vec![
                (1, engine.usm_unsupported_sec_levels().wrapping_add(below_level.load(Ordering::Relaxed))),
                (2, engine.usm_not_in_time_windows()),
                (3, engine.usm_unknown_usernames()),
                (4, engine.usm_unknown_engine_ids()),
                (5, engine.usm_wrong_digests()),
                (6, engine.usm_decryption_errors()),
            ],
        };
        let scalar = |number: u32| Oid::new(self.place.iter().copied().chain([number, 0]));
        counters.into_iter().map(|(number, count)| (scalar(number), Value::Counter32(count))).collect()
    }
}

impl MibHandler for Counters {
    fn get<'a>(&'a self, _: &'a RequestContext, oid: &'a Oid) -> BoxFuture<'a, HandlerResult<GetResult>> {
        Box::pin(async move { Ok(self.table().get(oid).cloned().map_or(GetResult::NoSuchInstance, GetResult::Value)) })
    }

    fn get_next<'a>(&'a self, _: &'a RequestContext, oid: &'a Oid) -> BoxFuture<'a, HandlerResult<GetNextResult>> {
        Box::pin(async move {
            let binding = |(oid, value): (&Oid, &Value)| GetNextResult::Value(VarBind::new(oid.clone(), value.clone()));
            Ok(self.table().get_next(oid).map_or(GetNextResult::EndOfMibView, binding))
        })
    }
}
