"""The Errata daemon: feeds, admission, dispatch, judgement, rollback and the operator's tools."""
