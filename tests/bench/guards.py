"""Every guard of the code, with the code without it and the test that must then fail."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """A guard whose ``test`` must fail when ``old``, unique in ``file``, is replaced by ``new``."""

    name: str
    file: str
    old: str
    new: str
    test: str


_LEDGER, _SESSION, _LEASES = (
    "daemon/core/ledger/ledger.py",
    "workers/session/session.py",
    "daemon/core/ledger/leases.py",
)
_FENCING, _LEDGER_TEST = "tests/crash/test_fencing.py::", "tests/daemon/core/ledger/test_ledger.py::"
_TAKEN_BACK = "tests/daemon/core/ledger/test_taken_back.py::"
_WATCH = "tests/daemon/watch/"
_SUBJECTS, _JUDGE, _ALERTS = (
    _WATCH + "test_subjects.py::",
    _WATCH + "test_judge.py::",
    _WATCH + "test_alerts.py::",
)
_API, _ROLES = "tests/daemon/api/test_api.py::", "tests/security/test_roles.py::"
_ADMISSION, _SCHEDULER = (
    "tests/daemon/admission/test_admit.py::",
    "tests/daemon/scheduling/test_scheduler.py::",
)
_WRITING = "workers/session/writing.py"
_PLACE = "tests/workers/publishing/test_place.py::"
_HEALING = "tests/workers/session/test_healing.py::"
_DAMAGE, _STORE = "tests/crash/test_damage.py::", "tests/workers/revisions/test_store.py::"

WRITERS = (
    Guard(
        "token checked inside the commit's transaction", _LEDGER,
        "            leases.check(connection, lease)\n            current = head(connection, proposal.model)",
        "            current = head(connection, proposal.model)",
        _FENCING + "test_a_worker_that_wakes_up_late_is_refused_while_the_next_one_works",
    ),
    Guard(
        "head is the parent, checked at commit", _LEDGER,
        'if current["number"] != proposal.parent:',
        "if False:",
        _LEDGER_TEST + "test_a_plan_on_an_old_head_is_refused",
    ),
    Guard(
        "the primary key of revisions is the compare-and-swap, and a loser is told so",
        "daemon/core/ledger/chain.py",
        "except IntegrityError as error:",
        "except ZeroDivisionError as error:",
        _LEDGER_TEST + "test_a_batch_is_committed_once_however_often_it_is_delivered",
    ),
    Guard(
        "a rollback takes a newer token", _LEDGER,
        'writer_lease(model), f"rollback by {who}")',
        '"nobody", f"rollback by {who}")',
        _LEDGER_TEST + "test_a_rollback_fences_the_edit_in_flight_which_is_planned_again",
    ),
    Guard(
        "a rollback takes the head that it expects", _LEDGER,
        'if expected is not None and current["number"] != expected:',
        "if False:",
        _LEDGER_TEST + "test_a_rollback_that_expected_another_head_is_refused",
    ),
    Guard(
        "what a rollback leaves behind is rejected", "daemon/core/ledger/chain.py",
        "row.number not in there and row.taken_back_by is None]",
        "False]",
        _TAKEN_BACK + "test_what_anybody_took_back_is_rejected_and_never_the_last_good_one",
    ),
    Guard(
        "a rollback settles the incidents of what it leaves behind", _LEDGER,
        "            settle_left_behind(connection, now, model, number, held, cause)\n",
        "",
        _TAKEN_BACK + "test_the_incidents_of_what_is_left_behind_are_settled_by_whoever_goes_back",
    ),
    Guard(
        "no verdict makes live what was taken back", "daemon/core/ledger/chain.py",
        "update(revisions).where(mine, there).values(state=state)",
        "update(revisions).where(mine).values(state=state)",
        _TAKEN_BACK + "test_a_verdict_on_what_was_taken_back_makes_nothing_live",
    ),
    Guard(
        "a lease that is held is not given away", _LEASES,
        "        if not clock.is_over(row, seconds):",
        "        if False:",
        _FENCING + "test_of_two_workers_one_writes_and_the_other_waits",
    ),
    Guard(
        "starts are counted before the work", _SESSION,
        "if starts < self.config.edit.max_attempts:",
        "if starts >= 0:",
        _FENCING + "test_a_poisonous_fact_is_quarantined_and_the_others_are_applied[Deadly-crashed_worker]",
    ),
    Guard(
        "one daemon leads", "daemon/scheduling/scheduler.py",
        "except LeaseHeldError as error:\n                self._lease = None",
        'except LeaseHeldError as error:\n                self._lease = leases.Lease(name, "", 0)',
        _SCHEDULER + "test_of_two_daemons_one_leads_and_the_other_waits",
    ),
    Guard(
        "a cursor that somebody else moved is not moved back", "daemon/admission/admit.py",
        "if _cursor(find_feed(connection, model, feed.name)) != cursor:",
        "if False:",
        _ADMISSION + "test_of_two_schedulers_at_once_one_moves_the_cursor",
    ),
    Guard(
        "a task is shorter than half the visibility timeout", "daemon/core/config/settings.py",
        "if self.task_seconds * 2 >= self.visibility_seconds:",
        "if False:",
        "tests/daemon/core/test_config.py::test_a_bad_configuration_is_refused_with_what_is_wrong_and_where",
    ),
    Guard(
        "what Redis lost is sent again", "daemon/scheduling/dispatch.py",
        "return _send(ledger, model, queue, BatchState.SENT, before=ripe)",
        "return 0",
        "tests/broker/test_lost_queue.py::test_flushed_with_batches_queued",
    ),
)  # fmt: skip

_DEADLINE = "tests/daemon/feeds/test_deadline.py::"
_MODELS = "tests/daemon/core/ledger/test_feeds_of_models.py::"
_STEPS, _LEASES_TEST = (
    "tests/daemon/scheduling/test_steps.py::",
    "tests/daemon/core/ledger/test_leases.py::",
)
TIME = (
    Guard(
        "leases are measured by the monotonic clock", _LEASES,
        '"seconds": seconds, "boot": self._boot',
        '"seconds": None, "boot": self._boot',
        _LEASES_TEST + "test_a_step_of_the_clock_neither_ends_a_lease_nor_makes_it_longer",
    ),
    Guard(
        "a lease of another host is over when it is not renewed", _LEASES,
        "return now - before[1] >= length",
        "return False",
        _STEPS + "test_a_lease_dated_hours_ahead_is_taken_over_within_its_length_and_the_log_says_so",
    ),
    Guard(
        "jobs are due by the monotonic clock", "daemon/scheduling/repetition.py",
        "return _ZERO.replace(tzinfo=self) + timedelta(seconds=time.monotonic())",
        "return _utc",
        _STEPS + "test_repeated_jobs_go_on_through_steps_of_the_machines_clock",
    ),
    Guard(
        "a clock that was set back makes no interval longer", "daemon/core/ledger/dates.py",
        "if was_settled and step >= 0:",
        "if was_settled:",
        _STEPS + "test_an_hours_budget_is_free_again_an_hour_after_a_step_back_at_the_latest",
    ),
    Guard(
        "a worker that stands by does not listen", "workers/queue/leading.py",
        "elif listens and not leads:",
        "elif False:",
        "tests/workers/queue/test_leading.py::test_one_of_two_workers_listens_and_the_other_when_it_ends",
    ),
    Guard(
        "a batch that finds another writer waits for it", "workers/queue/tasks.py",
        "            return False\n        log.info(\"batch\"",
        "            return True\n        log.info(\"batch\"",
        "tests/workers/queue/test_leading.py::test_a_batch_waits_for_the_lease_instead_of_being_dropped",
    ),
    Guard(
        "a daemon sends the batches of its own model alone", "daemon/scheduling/dispatch.py",
        "mine = (batch_table.c.model == model) & (batch_table.c.state == state)",
        "mine = batch_table.c.state == state",
        _MODELS + "test_batches_go_to_the_queue_of_their_own_daemon",
    ),
    Guard(
        "a feed's cursor is of one model", "daemon/core/ledger/feeds.py",
        "return (feeds.c.model == model) & (feeds.c.name == name)",
        "return feeds.c.name == name",
        _MODELS + "test_two_models_read_feeds_of_one_name_each_at_its_own_place",
    ),
    Guard(
        "a feed that two models read keeps its cursor for both",
        "daemon/core/ledger/migrations/versions/0013_feeds_of_models.py",
        "for reader in readers[1:]:",
        "for reader in ():",
        _MODELS + "test_a_feed_that_two_models_read_keeps_its_cursor_for_both_and_its_counts_once",
    ),
    Guard(
        "each read of an answer has the time that is left", "daemon/feeds/deadline.py",
        "return self._inner.read(max_bytes, self._deadline.left(timeout))",
        "return self._inner.read(max_bytes, timeout)",
        _DEADLINE + "test_a_slow_server_is_an_error_after_the_timeout",
    ),
    Guard(
        "a name is looked up in time", "daemon/feeds/deadline.py",
        "    thread.join(seconds)\n",
        "    thread.join()\n",
        _DEADLINE + "test_a_slow_resolver_is_an_error_after_the_timeout",
    ),
    Guard(
        "the end of the daemon does not wait for a feed's server", "daemon/scheduling/repetition.py",
        "if one.name not in self.left_at_the_end]",
        "if True]",
        _DEADLINE + "test_the_daemon_ends_at_once_while_a_feed_waits_for_its_server",
    ),
    Guard(
        "what is said later has the later date", "daemon/core/clock.py",
        "is_behind = self._last is not None and now < self._last <= now + _MOST_AHEAD",
        "is_behind = False",
        _STEPS + "test_what_is_said_later_wins_through_a_step_back",
    ),
    Guard(
        "nothing is collected soon after a step of the clock", "daemon/scheduling/scheduler.py",
        "if self.ledger.step_watch.seconds_since_step > self.config.store.grace_seconds:",
        "if True:",
        _STEPS + "test_nothing_is_collected_for_the_grace_time_after_a_step",
    ),
)  # fmt: skip

WEIGHTS = (
    Guard(
        "weights are finite", "workers/editing/guards.py",
        "if not weight.isfinite().all():",
        "if False:",
        "tests/numerics/test_editor.py::test_the_guard_refuses_nan_although_no_norm_exceeds_its_limit",
    ),
    Guard(
        "weights do not move too far", "workers/editing/guards.py",
        "if not batch <= batch_ceiling:",
        "if False:",
        "tests/numerics/test_editor.py::test_the_guard_refuses_weights_that_moved_too_far",
    ),
    Guard(
        "what was written is asked for before it is kept", _WRITING,
        "        return {one: reading for one, reading in by_id.items() if not reading.ok}\n",
        "        return {}\n",
        _FENCING + "test_a_poisonous_fact_is_quarantined_and_the_others_are_applied[Unland-not_learned]",
    ),
    Guard(
        "what stays is asked again when others were taken out", _WRITING,
        "            turn += 1\n",
        "            edit.asked = self.editor.published()\n",
        "tests/crash/test_asked_again.py::test_what_fails_when_others_are_refused_is_dropped",
    ),
    Guard(
        "what stays is asked again after the review", "workers/session/session.py",
        "                self._writer.settle(edit)  # the review may have changed the weights\n",
        "                pass\n",
        "tests/crash/test_asked_again.py::test_what_the_review_disturbs_is_asked_again",
    ),
    Guard(
        "sha256 at every load", "workers/revisions/store.py",
        "        if digest != name:\n",
        "        if False:\n",
        _STORE + "test_a_damaged_blob_is_never_loaded",
    ),
    Guard(
        "the scrub compares every blob with its name", "daemon/core/blobs.py",
        "    if actual != name:\n",
        "    if False:\n",
        _DAMAGE + "test_the_scrub_finds_every_kind_of_damage_and_opens_one_incident",
    ),
    Guard(
        "damage found by a worker is mended", "workers/queue/tasks.py",
        "error=str(error))\n        _recover(holder, error.message)\n",
        "error=str(error))\n        holder.forget()\n",
        _DAMAGE + "test_tensors_of_head_are_solved_anew_from_its_facts",
    ),
    Guard(
        "what a retracted fact shared with others of its subject goes too", _WRITING,
        "            subjects = {fact.subject for fact in (*unknown, *plan.removals)}\n",
        "            subjects = {fact.subject for fact in unknown}\n",
        "tests/crash/test_joint.py::test_it_is_sought_again_without_what_is_retracted",
    ),
    Guard(
        "what a refused fact shared with others of its subject goes too", _WRITING,
        "entry[0].subject in subjects]\n",
        "False]\n",
        "tests/crash/test_joint.py::test_what_a_refused_fact_shared_goes_with_it",
    ),
    Guard(
        "content is synced before its name", "daemon/core/fsio.py",
        'fault("fsio.fsync")\n                os.fsync(descriptor)\n',
        'fault("fsio.fsync")\n                pass\n',
        "tests/daemon/core/test_fsio.py::test_content_and_name_are_synced_in_their_order",
    ),
    Guard(
        "names are synced", "daemon/core/fsio.py",
        "            fsync_folder(path.parent)\n",
        "            pass\n",
        "tests/daemon/core/test_fsio.py::test_content_and_name_are_synced_in_their_order",
    ),
    Guard(
        "no batch is handed out without room", "daemon/scheduling/scheduler.py",
        "    def _dispatch(self) -> None:\n        require_free_space(self.ledger, self.config)\n",
        "    def _dispatch(self) -> None:\n",
        _SCHEDULER + "test_a_full_disk_pauses_the_edits_and_they_go_on_by_themselves",
    ),
    Guard(
        "a collection spares what is needed", "daemon/core/blobs.py",
        "if path.stem in reachable or stat.st_mtime > oldest:",
        "if stat.st_mtime > oldest:",
        _STORE + "test_a_collection_spares_what_is_reachable_and_what_is_young",
    ),
    Guard(
        "a collection spares what is young", "daemon/core/blobs.py",
        "if path.stem in reachable or stat.st_mtime > oldest:",
        "if path.stem in reachable:",
        _STORE + "test_a_collection_spares_what_is_reachable_and_what_is_young",
    ),
    Guard(
        "a damaged ledger is refused", _LEDGER,
        "    check_integrity(engine)\n",
        "",
        _LEDGER_TEST + "test_a_damaged_ledger_is_refused_and_says_how_to_restore",
    ),
    Guard(
        "a ledger of a newer Errata is refused", "daemon/core/ledger/database.py",
        "if current is not None and current > newest:",
        "if False:",
        "tests/daemon/core/ledger/test_migrations.py::test_a_ledger_of_a_newer_errata_is_refused_and_left_alone",
    ),
    Guard(
        "only the daemon and errata migrate migrate", _LEDGER,
        "        require_schema(engine)\n",
        "        migrate(engine)\n",
        "tests/daemon/core/ledger/test_migrations.py::test_only_the_daemon_and_its_command_migrate",
    ),
    Guard(
        "children end with their supervisor", "daemon/core/orphans.py",
        "        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))",
        "        ctypes.CDLL(None)",
        "tests/daemon/embedded/test_children.py::test_a_child_ends_when_its_supervisor_is_killed",
    ),
    Guard(
        "what an earlier supervisor left is ended", "daemon/embedded/children.py",
        "            os.killpg(leader, signal.SIGKILL)",
        "            pass",
        "tests/daemon/embedded/test_children.py::"
        "test_what_an_earlier_supervisor_left_is_ended_before_the_next_one_starts",
    ),
    Guard(
        "a process that does not end in time is ended", "daemon/core/ending.py",
        "        self._on_force()\n        os._exit(0)",
        "        self._on_force()",
        "tests/daemon/core/test_ending.py::test_it_is_ended_at_the_limit_where_it_does_not",
    ),
    Guard(
        "a task is left when its worker is to end", "workers/queue/interruption.py",
        "cleaning up\n            raise KeyboardInterrupt",
        "cleaning up",
        "tests/broker/test_worker_ends.py::test_in_a_batch",
    ),
    Guard(
        "a silent process is lost", "daemon/core/ledger/heartbeats.py",
        "    if age_seconds(clock, row) <= _MISSED",
        "    if 0 * age_seconds(clock, row) <= _MISSED",
        "tests/daemon/core/ledger/test_heartbeats.py::test_a_silent_process_is_lost_after_three_heartbeats",
    ),
    Guard(
        "heartbeats are measured by the monotonic clock", "daemon/core/ledger/heartbeats.py",
        '    if row["boot"] == boot_id():\n',
        "    if False:\n",
        "tests/daemon/core/ledger/test_heartbeats.py::test_a_step_of_the_clock_makes_nobody_dead_or_alive",
    ),
    Guard(
        "nothing is migrated under an older daemon", "daemon/core/ledger/upgrade.py",
        "    if held:\n",
        "    if False:\n",
        "tests/daemon/core/ledger/test_migrations.py::test_nothing_is_migrated_under_an_older_daemon_that_works",
    ),
    Guard(
        "a probe without a score is unknown", "workers/probes/base.py",
        "result=ProbeResult.UNKNOWN if unknown else probe.judge(score, bound),",
        "result=ProbeResult.OK if unknown else probe.judge(score, bound),",
        "tests/numerics/test_probes.py::test_what_gives_no_score_is_unknown",
    ),
    Guard(
        "what accuses no revision moves none", "daemon/core/ledger/incidents.py",
        'mine = (incidents.c.model == model) & (incidents.c.subject == Subject.REVISION) & bad',
        "mine = (incidents.c.model == model) & bad",
        _SUBJECTS + "test_a_flood_of_garbage_pauses_its_feed_and_touches_nothing_else",
    ),
    Guard(
        "a rollback mends no feed, store or host", "daemon/core/ledger/incidents.py",
        "mine = (incidents.c.model == model) & (incidents.c.subject == Subject.REVISION)\n    unsettled",
        "mine = incidents.c.model == model\n    unsettled",
        _SUBJECTS + "test_what_accuses_no_revision_is_never_answered_by_a_rollback",
    ),
    Guard(
        "evidence counts against what head holds alone", "daemon/core/ledger/incidents.py",
        'return [row for row in rows if row["revision"] in held]',
        "return rows",
        _SUBJECTS + "test_evidence_against_what_head_no_longer_holds_neither_rolls_back_nor_freezes",
    ),
    Guard(
        "no rollback goes to content that is accused", "daemon/watch/rollback.py",
        'not_in({head_row["content"], *accused})',
        'not_in({head_row["content"]})',
        _JUDGE + "test_no_rollback_goes_to_the_content_that_is_accused",
    ),
    Guard(
        "each revision is judged by its own measurements", "daemon/watch/judge.py",
        "judged.c.revision == by_revision.c.revision)",
        "judged.c.revision != -1)",
        _JUDGE + "test_a_survey_that_was_judged_first_does_not_hide_one_either",
    ),
    Guard(
        "an old look replaces no newer judgement", "daemon/watch/judge.py",
        "if newest > newest_judged(connection, model, number):",
        "if True:",
        _JUDGE + "test_an_old_look_does_not_replace_a_newer_judgement",
    ),
    Guard(
        "an alert takes back only what it names", "daemon/watch/alerts.py",
        "        number = alert.revision\n        if number is None:",
        "        number = None\n        if number is None:",
        _ALERTS + "test_an_alert_takes_back_the_revision_that_it_names_and_no_other",
    ),
    Guard(
        "an alert that fires again leaves alone what it did not accuse", "daemon/watch/alerts.py",
        "self._newest_edit > self._answered.get(alert.probe, 0)",
        "True",
        _ALERTS + "test_an_alert_that_fires_again_leaves_alone_what_it_did_not_accuse",
    ),
    Guard(
        "missing data never lead back", "daemon/watch/alerts.py",
        "return asks and not self.lacks_data",
        "return asks",
        _ALERTS + "test_missing_data_never_lead_back",
    ),
    Guard(
        "an odd alert costs no other", "daemon/watch/alerts.py",
        "except (ValueError, OverflowError, NotFoundError):",
        "except ZeroDivisionError:",
        _ALERTS + "test_an_odd_alert_costs_no_other",
    ),
    Guard(
        "a second rollback within the cooldown is a freeze", "daemon/watch/judge.py",
        "if lately or trouble.target is None or trouble.too_far:",
        "if trouble.target is None or trouble.too_far:",
        "tests/daemon/watch/test_judge.py::test_twice_within_the_cooldown_freezes",
    ),
)  # fmt: skip

STRANGERS = (
    Guard(
        "newest wins, not latest", "daemon/admission/newest_wins.py",
        "if current is not None and new.order_key < current.order_key:",
        "if False:",
        _ADMISSION + "test_an_older_statement_is_stored_but_changes_nothing",
    ),
    Guard(
        "what a rollback took back stays out", "daemon/admission/newest_wins.py",
        "if taken_back is not None and not may_return and new.agrees_with(taken_back):",
        "if False:",
        _ADMISSION + "test_what_a_rollback_took_back_does_not_come_back_by_itself",
    ),
    Guard(
        "what bisect found guilty stays out", "daemon/admission/record.py",
        "    for row in _culprits(connection, fact_ids):\n",
        "    for row in ():\n",
        _HEALING + "test_what_says_the_same_as_a_culprit_needs_an_operator",
    ),
    Guard(
        "nothing comes back where that is turned off", "daemon/watch/judge.py",
        "    if config.watch.auto_bisect:\n",
        "    if True:\n",
        _HEALING + "test_it_can_be_turned_off",
    ),
    Guard(
        "a rollback by hand ends the healing", "workers/session/healing.py",
        "    if overruled:\n",
        "    if False:\n",
        _HEALING + "test_an_operators_rollback_in_the_midst_ends_it",
    ),
    Guard(
        "what came back once does not come back for ever", "daemon/core/ledger/healing.py",
        "    if not again or _has_culprit(connection, model, rollback):\n",
        "    if True:\n",
        _HEALING + "test_what_came_back_and_goes_again_without_a_culprit_stays_out",
    ),
    Guard(
        "items are bounded in depth", "daemon/core/corrections.py",
        "if _depth(text) > MAX_DEPTH:",
        "if False:",
        "tests/daemon/feeds/test_attacks.py::test_each_attack_is_refused_with_its_reason",
    ),
    Guard(
        "feeds wait while the queue is full", "daemon/scheduling/scheduler.py",
        "while self._queue_accepts() and (limit := bucket.available(section.chunk_items)):",
        "while limit := bucket.available(section.chunk_items):",
        _SCHEDULER + "test_a_flood_fills_the_queue_to_its_bound_and_no_further",
    ),
    Guard(
        "only so many batches go ahead", "daemon/scheduling/dispatch.py",
        "    if free <= 0:\n        return []\n",
        "    free = _AT_ONCE\n",
        "tests/daemon/scheduling/test_dispatch.py::"
        "test_only_so_many_batches_go_ahead_and_what_waits_behind_them_is_replaced",
    ),
    Guard(
        "a feed that fills the quarantine pauses itself", "daemon/admission/auto_pause.py",
        "        if count < limit:\n",
        "        if count >= 0:\n",
        "tests/daemon/admission/test_policy.py::test_a_feed_that_fills_the_quarantine_pauses_itself_once",
    ),
    Guard(
        "only public addresses are asked", "daemon/feeds/guard.py",
        "return address.is_global and not address.is_multicast",
        "return True",
        "tests/daemon/feeds/test_guard.py::test_a_name_that_means_a_private_address_is_refused",
    ),
    Guard(
        "the queue carries JSON only", "daemon/core/broker.py",
        '"accept_content": ["json"],',
        '"accept_content": ["json", "pickle"],',
        "tests/broker/test_lost_queue.py::test_a_foreign_message_is_discarded_and_runs_no_code[pickle]",
    ),
    Guard(
        "a token is needed", "daemon/api/guard.py",
        "        if role is None:\n            answer = problem(401",
        "        if role is None:\n            return Role.OPERATE\n            answer = problem(401",
        _API + "test_with_a_token_file_only_its_token_opens",
    ),
    Guard(
        "a role opens no more than its part", "daemon/api/guard.py",
        "if not role.includes(needed):",
        "if False:",
        _ROLES + "test_each_role_may_do_its_part_and_what_is_below_it",
    ),
    Guard(
        "a command needs its role", "daemon/core/command.py",
        "    if not role.includes(needed):\n",
        "    if False:\n",
        "tests/security/test_cli_roles.py::test_who_may_only_look_changes_nothing",
    ),
    Guard(
        "tokens are compared in constant time", "daemon/core/tokens.py",
        "if role in self._files and hmac.compare_digest(offered, read_token(self._files[role]).encode()):",
        "if role in self._files and offered == read_token(self._files[role]).encode():",
        _ROLES + "test_every_token_is_compared_in_constant_time",
    ),
    Guard(
        "wrong tokens are limited", "daemon/api/guard.py",
        "if self._failures.too_many(_address(scope)):",
        "if False:",
        _ROLES + "test_guesses_do_not_fill_the_ledger_and_shut_nobody_else_out",
    ),
    Guard(
        "without a token only this machine may change things", "daemon/api/guard.py",
        "            if _is_local(scope, headers):\n",
        "            if True:\n",
        _API + "test_without_a_token_file_others_may_only_look",
    ),
    Guard(
        "no page of another origin may", "daemon/api/guard.py",
        "_is_loopback(asked_for) and not foreign",
        "_is_loopback(asked_for)",
        _API + "test_a_page_of_another_origin_cannot_use_a_browser_here",
    ),
    Guard(
        "bodies are bounded", "daemon/api/guard.py",
        "            if size > limit:\n",
        "            if False:\n",
        _API + "test_a_body_above_the_limit_is_refused_declared_or_not",
    ),
    Guard(
        "a delivery bears its feed's signature", "daemon/api/corrections.py",
        "return hmac.compare_digest(header.strip().lower().encode(), wanted.encode())",
        "return True",
        "tests/daemon/api/test_webhook.py::test_a_signature_of_another_body_or_key_and_other_routes_are_refused",
    ),
    Guard(
        "audit rows hold each other", "daemon/core/ledger/audit.py",
        'if row["previous"] != previous or row["hash"] != _row_hash(body):',
        'if row["previous"] != previous:',
        "tests/daemon/core/ledger/test_audit.py::test_a_changed_row_is_found",
    ),
)  # fmt: skip

PUBLISHING = (
    Guard(
        "edited tensors are copied", "workers/publishing/export.py",
        "        copy_durably(self._store.path(blob), target)\n",
        "        target.hardlink_to(self._store.path(blob))\n",
        _PLACE + "test_a_published_folder_shares_no_file_with_store_or_model",
    ),
    Guard(
        "a published folder has the files of its record alone", "daemon/core/published.py",
        "if foreign := sorted(there.keys() - files.keys()):",
        "if foreign := sorted(set(there) & {None}):",
        _PLACE + "test_a_damaged_folder_is_mended_and_reaches_neither_store_nor_model[add_foreign]",
    ),
    Guard(
        "a changed published file is noticed", "daemon/core/published.py",
        "if not recorded.is_unchanged(status):",
        "if status.st_size != recorded.size:",
        _PLACE + "test_a_damaged_folder_is_mended_and_reaches_neither_store_nor_model[flip]",
    ),
    Guard(
        "a published file has no second name", "daemon/core/published.py",
        "if not recorded.part and status.st_nlink > 1:",
        "if False:",
        _PLACE + "test_a_damaged_folder_is_mended_and_reaches_neither_store_nor_model[give_second_name]",
    ),
    Guard(
        "the scrub reads every published byte", "daemon/core/published.py",
        "if hashes[status.st_ino] != recorded.sha256:",
        "if False:",
        _PLACE + "test_a_byte_that_only_reading_finds_is_found_by_the_scrub",
    ),
    Guard(
        "a folder without a record is written again", "workers/publishing/publisher.py",
        'return "is not recorded"',
        'return ""',
        _PLACE + "test_folders_of_hard_links_that_an_older_errata_left_become_copies",
    ),
    Guard(
        "a part of the base model has its recorded sha256", "workers/publishing/parts.py",
        "if known is not None and known.sha256 != sha256:",
        "if False:",
        _PLACE + "test_a_damaged_model_is_not_published_and_no_process_ends",
    ),
    Guard(
        "live leads to a whole folder while one is mended", "workers/publishing/place.py",
        "            if self.points_to(folder):\n",
        "            if False:\n",
        _PLACE + "test_who_reads_through_the_link_meets_a_whole_folder_at_every_moment",
    ),
    Guard(
        "what fails in a published place is logged, and the rest goes on",
        "workers/publishing/publisher.py",
        "            with disk_errors(self._root):\n                yield\n",
        "            yield\n",
        _PLACE + "test_nothing_that_lies_in_the_place_ends_or_stops_the_publisher",
    ),
    Guard(
        "the reserve counts a publication", "daemon/core/space.py",
        "return config.store.reserve_bytes + publication_bytes(connection, config)",
        "return config.store.reserve_bytes",
        _PLACE + "test_the_reserve_counts_what_a_publication_needs",
    ),
    Guard(
        "the blobs of a revision are checked before a rollback to it", _LEDGER,
        "        self._require_blobs(model, to, check)\n",
        "",
        "tests/daemon/watch/test_rollback.py::test_no_rollback_goes_to_a_revision_without_its_blobs",
    ),
    Guard(
        "the last good revision is sound", "daemon/watch/rollback.py",
        "            check_in(store)(blobs_of(connection, row))\n",
        "            pass\n",
        "tests/daemon/watch/test_rollback.py::test_the_last_good_revision_is_one_whose_blobs_are_sound",
    ),
    Guard(
        "a backup leaves out damaged blobs", "daemon/upkeep/backup.py",
        "        if why := _flaw_of(store, blob):\n",
        "        if why := '':\n",
        _DAMAGE + "test_a_backup_leaves_out_what_is_damaged_and_saves_the_rest[lose]",
    ),
    Guard(
        "a backup has files of its own", "daemon/upkeep/backup.py",
        "if hard_links and _link(source, copy):",
        "if _link(source, copy):",
        _DAMAGE + "test_a_backup_on_the_same_disk_outlives_damage_to_the_store",
    ),
    Guard(
        "an unfinished backup has no ledger", "daemon/upkeep/backup.py",
        '_UNFINISHED = "unfinished.sqlite"',
        '_UNFINISHED = "ledger.sqlite"',
        _DAMAGE + "test_a_backup_that_was_interrupted_is_none",
    ),
    Guard(
        "a backup does not lie in data_dir", "daemon/upkeep/backup.py",
        "if where.is_relative_to(mine.resolve()):",
        "if False:",
        _DAMAGE + "test_a_backup_does_not_lie_in_what_it_is_a_backup_of",
    ),
)  # fmt: skip

GUARDS = (*WRITERS, *TIME, *WEIGHTS, *STRANGERS, *PUBLISHING)
