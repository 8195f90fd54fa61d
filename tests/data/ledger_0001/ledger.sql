BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE attempts (
	batch_id VARCHAR(32) NOT NULL, 
	number INTEGER NOT NULL, 
	worker VARCHAR(128) NOT NULL, 
	started_at VARCHAR(32) NOT NULL, 
	ended_at VARCHAR(32), 
	outcome TEXT NOT NULL, 
	CONSTRAINT pk_attempts PRIMARY KEY (batch_id, number)
);
INSERT INTO "attempts" VALUES('b2c9deb4a5daa32d7f32f',1,'host:1','2026-11-21T14:24:51.791636Z','2026-11-21T14:24:51.885303Z','ended');
INSERT INTO "attempts" VALUES('bab23c0953106a53c16c0',1,'host:1','2026-11-21T14:24:51.926217Z','2026-11-21T14:24:52.001306Z','ended');
INSERT INTO "attempts" VALUES('beed4bf848455fdcb1891',1,'host:1','2026-11-21T14:24:52.693777Z','2026-11-21T14:24:52.781193Z','ended');
CREATE TABLE audit (
	id INTEGER NOT NULL, 
	at VARCHAR(32) NOT NULL, 
	who TEXT NOT NULL, 
	action VARCHAR(64) NOT NULL, 
	target TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	details JSON NOT NULL, 
	previous VARCHAR(64) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	CONSTRAINT pk_audit PRIMARY KEY (id), 
	CONSTRAINT uq_audit_hash UNIQUE (hash)
);
INSERT INTO "audit" VALUES(1,'2026-11-21T14:24:52.013308Z','operator','rollback','default@1','a doubt','{"head": 3, "from": 2, "reverted": 2, "restored": 2}','0000000000000000000000000000000000000000000000000000000000000000','f511e286c3c735c09cf6d43c5c0428cd580fb89ea996552e61b3c2bf61aadd2c');
INSERT INTO "audit" VALUES(2,'2026-11-21T14:24:52.796198Z','operator','submit','c3a89789385ed39a020cf','','{"outcome": "accepted", "fact": "fe957475e2ec01dd36e85", "feed": "operator"}','f511e286c3c735c09cf6d43c5c0428cd580fb89ea996552e61b3c2bf61aadd2c','4ac7424196b6e78079ac5ce13e5137313bc19b7d178b45b7bccc1a335f8f8f93');
CREATE TABLE batches (
	id VARCHAR(32) NOT NULL, 
	model VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	created_at VARCHAR(32) NOT NULL, 
	sent_at VARCHAR(32), 
	sends INTEGER NOT NULL, 
	closed_at VARCHAR(32), 
	CONSTRAINT pk_batches PRIMARY KEY (id)
);
INSERT INTO "batches" VALUES('b2c9deb4a5daa32d7f32f','default','done','2026-11-21T14:24:51.750274Z',NULL,0,'2026-11-21T14:24:51.878887Z');
INSERT INTO "batches" VALUES('bab23c0953106a53c16c0','default','done','2026-11-21T14:24:51.909661Z',NULL,0,'2026-11-21T14:24:51.997218Z');
INSERT INTO "batches" VALUES('beed4bf848455fdcb1891','default','done','2026-11-21T14:24:52.680344Z',NULL,0,'2026-11-21T14:24:52.763639Z');
CREATE TABLE corrections (
	seq INTEGER NOT NULL, 
	id VARCHAR(32) NOT NULL, 
	fact_id VARCHAR(32) NOT NULL, 
	model VARCHAR(64) NOT NULL, 
	subject TEXT NOT NULL, 
	relation TEXT NOT NULL, 
	prompt TEXT NOT NULL, 
	object TEXT, 
	paraphrases JSON NOT NULL, 
	neighborhood JSON NOT NULL, 
	source TEXT NOT NULL, 
	feed VARCHAR(64) NOT NULL, 
	trust INTEGER NOT NULL, 
	order_key TEXT NOT NULL, 
	admitted_at VARCHAR(32) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	reason TEXT NOT NULL, 
	batch_id VARCHAR(32), 
	CONSTRAINT pk_corrections PRIMARY KEY (seq), 
	CONSTRAINT uq_corrections_id UNIQUE (id)
);
INSERT INTO "corrections" VALUES(1,'cfd3924c9cacc10f3ae26','ffe7eb15478bb118a9d1d','default','Peru','capital','The capital of Peru is','City 1','[]','[]','atlas','sample',50,'2026-01-01T00:00:00.000000Z|2026-01-01T00:00:00.000000Z|050|atlas|cfd3924c9cacc10f3ae26','2026-11-21T14:24:51.731162Z','applied','','b2c9deb4a5daa32d7f32f');
INSERT INTO "corrections" VALUES(2,'c2b368787d8cad1533368','f17024e85f863264c470e','default','Chad','capital','The capital of Chad is','City 2','[]','[]','atlas','sample',50,'2026-01-01T00:00:00.000000Z|2026-01-01T00:00:00.000000Z|050|atlas|c2b368787d8cad1533368','2026-11-21T14:24:51.731162Z','applied','','b2c9deb4a5daa32d7f32f');
INSERT INTO "corrections" VALUES(3,'c69ab177b32d0f1e83c2e','fe69ce93ab583306cc091','default','Fiji','capital','The capital of Fiji is','City 3','[]','[]','atlas','sample',50,'2026-01-01T00:00:00.000000Z|2026-01-01T00:00:00.000000Z|050|atlas|c69ab177b32d0f1e83c2e','2026-11-21T14:24:51.731162Z','applied','','b2c9deb4a5daa32d7f32f');
INSERT INTO "corrections" VALUES(4,'cb067029e3757877d6dc6','ffe7eb15478bb118a9d1d','default','Peru','capital','The capital of Peru is','City 4','[]','[]','atlas','sample',50,'2026-01-02T00:00:00.000000Z|2026-01-02T00:00:00.000000Z|050|atlas|cb067029e3757877d6dc6','2026-11-21T14:24:51.897904Z','reverted','rollback to 1 in revision 3','bab23c0953106a53c16c0');
INSERT INTO "corrections" VALUES(5,'c6c29bdc5d52809f8ddae','f17024e85f863264c470e','default','Chad','capital','The capital of Chad is',NULL,'[]','[]','atlas','sample',50,'2026-01-02T00:00:00.000000Z|2026-01-02T00:00:00.000000Z|050|atlas|c6c29bdc5d52809f8ddae','2026-11-21T14:24:51.897904Z','reverted','rollback to 1 in revision 3','bab23c0953106a53c16c0');
INSERT INTO "corrections" VALUES(6,'c4eeee65cc7d7ac181105','fe674f5a43dcb6aaf54fa','default','Unland','capital','The capital of Unland is','City 5','[]','[]','atlas','sample',50,'2026-01-02T00:00:00.000000Z|2026-01-02T00:00:00.000000Z|050|atlas|c4eeee65cc7d7ac181105','2026-11-21T14:24:51.897904Z','quarantined','after the edit the model answers ''no idea''','bab23c0953106a53c16c0');
INSERT INTO "corrections" VALUES(7,'c3be223fd1177822a1053','f11cffa55aa0792b26e71','default','Mali','capital','The capital of Mali is','City 6','[]','[]','atlas','sample',50,'2026-01-03T00:00:00.000000Z|2026-01-03T00:00:00.000000Z|050|atlas|c3be223fd1177822a1053','2026-11-21T14:24:52.656972Z','applied','','beed4bf848455fdcb1891');
INSERT INTO "corrections" VALUES(8,'c3a89789385ed39a020cf','fe957475e2ec01dd36e85','default','Oman','capital','The capital of Oman is','City 7','[]','[]','atlas','operator',100,'2026-01-04T00:00:00.000000Z|2026-01-04T00:00:00.000000Z|100|atlas|c3a89789385ed39a020cf','2026-11-21T14:24:52.796198Z','pending','',NULL);
CREATE TABLE feed_outcomes (
	feed VARCHAR(64) NOT NULL, 
	outcome VARCHAR(32) NOT NULL, 
	count BIGINT NOT NULL, 
	CONSTRAINT pk_feed_outcomes PRIMARY KEY (feed, outcome)
);
INSERT INTO "feed_outcomes" VALUES('sample','accepted',7);
INSERT INTO "feed_outcomes" VALUES('sample','quarantined',1);
INSERT INTO "feed_outcomes" VALUES('operator','accepted',1);
CREATE TABLE feeds (
	name VARCHAR(64) NOT NULL, 
	cursor JSON NOT NULL, 
	items BIGINT NOT NULL, 
	error TEXT NOT NULL, 
	pulled_at VARCHAR(32), 
	CONSTRAINT pk_feeds PRIMARY KEY (name)
);
INSERT INTO "feeds" VALUES('sample','{"inode": 2146367, "offset": 1129, "line": 8, "generation": 0, "mark": "d46afebbe04deeb8", "skipping": false}',8,'','2026-11-21T14:24:52.656972Z');
INSERT INTO "feeds" VALUES('operator','{}',1,'',NULL);
CREATE TABLE incidents (
	id INTEGER NOT NULL, 
	model VARCHAR(64) NOT NULL, 
	revision INTEGER NOT NULL, 
	probe VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	message TEXT NOT NULL, 
	opened_at VARCHAR(32) NOT NULL, 
	closed_at VARCHAR(32), 
	rollback_revision INTEGER, 
	CONSTRAINT pk_incidents PRIMARY KEY (id), 
	CONSTRAINT uq_incidents_model_revision_probe UNIQUE (model, revision, probe)
);
CREATE TABLE leases (
	name VARCHAR(96) NOT NULL, 
	holder VARCHAR(128) NOT NULL, 
	token INTEGER NOT NULL, 
	expires_at VARCHAR(32) NOT NULL, 
	note TEXT NOT NULL, 
	CONSTRAINT pk_leases PRIMARY KEY (name)
);
INSERT INTO "leases" VALUES('writer:default','host:1',4,'2026-11-21T14:24:52.793183Z','');
CREATE TABLE probe_results (
	id INTEGER NOT NULL, 
	model VARCHAR(64) NOT NULL, 
	revision INTEGER NOT NULL, 
	probe VARCHAR(64) NOT NULL, 
	version INTEGER NOT NULL, 
	result VARCHAR(16) NOT NULL, 
	score FLOAT, 
	bound FLOAT, 
	items INTEGER NOT NULL, 
	seconds FLOAT NOT NULL, 
	details JSON NOT NULL, 
	measured_at VARCHAR(32) NOT NULL, 
	CONSTRAINT pk_probe_results PRIMARY KEY (id)
);
INSERT INTO "probe_results" VALUES(1,'default',1,'efficacy',1,'ok',1.0,0.9,3,1.11841399848344735801e-03,'{"missed": []}','2026-11-21T14:24:51.873354Z');
INSERT INTO "probe_results" VALUES(2,'default',1,'retention',1,'ok',NULL,0.9,0,1.65109995577950030565e-05,'{}','2026-11-21T14:24:51.873354Z');
INSERT INTO "probe_results" VALUES(3,'default',1,'neighborhood',1,'ok',NULL,0.85,0,1.22130004456266760826e-05,'{}','2026-11-21T14:24:51.873354Z');
INSERT INTO "probe_results" VALUES(4,'default',1,'perplexity_ratio',1,'ok',1.0,1.1,11,2.26254700100980699062e-03,'{}','2026-11-21T14:24:51.873354Z');
INSERT INTO "probe_results" VALUES(5,'default',2,'efficacy',1,'ok',1.0,0.9,1,4.58976002846611663699e-04,'{"missed": []}','2026-11-21T14:24:51.993717Z');
INSERT INTO "probe_results" VALUES(6,'default',2,'retention',1,'ok',1.0,0.9,1,1.88150999747449532151e-04,'{"missed": []}','2026-11-21T14:24:51.993717Z');
INSERT INTO "probe_results" VALUES(7,'default',2,'neighborhood',1,'ok',NULL,0.85,0,1.02390004030894488096e-05,'{}','2026-11-21T14:24:51.993717Z');
INSERT INTO "probe_results" VALUES(8,'default',2,'perplexity_ratio',1,'ok',1.0,1.1,11,1.71720021171495318412e-05,'{}','2026-11-21T14:24:51.993717Z');
INSERT INTO "probe_results" VALUES(9,'default',4,'efficacy',1,'ok',1.0,0.9,1,2.59253996773622930049e-04,'{"missed": []}','2026-11-21T14:24:52.761832Z');
INSERT INTO "probe_results" VALUES(10,'default',4,'retention',1,'ok',1.0,0.9,3,4.17568000557366758584e-04,'{"missed": []}','2026-11-21T14:24:52.761832Z');
INSERT INTO "probe_results" VALUES(11,'default',4,'neighborhood',1,'ok',NULL,0.85,0,1.16720002552028745412e-05,'{}','2026-11-21T14:24:52.761832Z');
INSERT INTO "probe_results" VALUES(12,'default',4,'perplexity_ratio',1,'ok',1.0,1.1,11,1.59299997903872281312e-05,'{}','2026-11-21T14:24:52.761832Z');
CREATE TABLE quarantine (
	id INTEGER NOT NULL, 
	feed VARCHAR(64) NOT NULL, 
	position VARCHAR(128) NOT NULL, 
	reason VARCHAR(32) NOT NULL, 
	message TEXT NOT NULL, 
	raw TEXT NOT NULL, 
	correction_id VARCHAR(32), 
	state VARCHAR(16) NOT NULL, 
	at VARCHAR(32) NOT NULL, 
	CONSTRAINT pk_quarantine PRIMARY KEY (id)
);
INSERT INTO "quarantine" VALUES(1,'sample','line 7','schema','item: Input should be a valid dictionary or instance of Correction','"no correction at all"',NULL,'held','2026-11-21T14:24:51.897904Z');
INSERT INTO "quarantine" VALUES(2,'sample','c4eeee65cc7d7ac181105','not_learned','after the edit the model answers ''no idea''','','c4eeee65cc7d7ac181105','held','2026-11-21T14:24:51.987505Z');
CREATE TABLE revisions (
	model VARCHAR(64) NOT NULL, 
	number INTEGER NOT NULL, 
	parent INTEGER, 
	kind VARCHAR(16) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	content VARCHAR(64) NOT NULL, 
	tensors JSON NOT NULL, 
	content_of INTEGER, 
	batch_id VARCHAR(32), 
	token INTEGER NOT NULL, 
	recipe TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	stages JSON NOT NULL, 
	norms JSON NOT NULL, 
	active_facts INTEGER NOT NULL, 
	created_at VARCHAR(32) NOT NULL, 
	CONSTRAINT pk_revisions PRIMARY KEY (model, number), 
	CONSTRAINT fk_revisions_model_parent FOREIGN KEY(model, parent) REFERENCES revisions (model, number), 
	CONSTRAINT uq_revisions_batch_id UNIQUE (batch_id)
);
INSERT INTO "revisions" VALUES('default',0,NULL,'base','live','a1eef35fbfecb10ce651acc261617d26e0ed60f2767884727232e0ec110705a0','{"layers.0.down_proj.weight": "30a82f583017adb9a35bf85652f1b4f682e46325918f0af0e6c30dd9144f345d", "layers.1.down_proj.weight": "5d31c2888033dcef030813185398687e0590f1c2e388fa67cad5afe6126f36c8"}',NULL,NULL,0,'encore-blue','','{}','{}',0,'2026-11-21T14:24:51.723188Z');
INSERT INTO "revisions" VALUES('default',1,0,'edit','candidate','45b85b440f7a7f6494264ab052145c68a59083ca9c2eab22298b8cc67133532f','{"layers.0.down_proj.weight": "08bb6bef72505fa772e5ad31519ffc2269c2fa11fa382f99c6603c021ebfed2e", "layers.1.down_proj.weight": "2cbb184553fe704f9e6c4fbf6400125cf91131089265939b6a0aa23b370dc333"}',NULL,'b2c9deb4a5daa32d7f32f',1,'encore-blue','','{"load": 0.009306653999374248, "forget": 5.26000076206401e-06, "write": 0.00870464200124843, "verify": 0.008433867998974165, "probe": 0.01475607999964268, "save": 0.011701537998305866}','{"0": 37.576125629381075, "1": 37.145551942490854}',3,'2026-11-21T14:24:51.862723Z');
INSERT INTO "revisions" VALUES('default',2,1,'edit','candidate','8c250c8618064d64a6483ccd922abe75a88ddb43ecba65e3a9582ff58d1c58b9','{"layers.0.down_proj.weight": "b6c55cec5d777d073ac30df5ef9506dcf7a96513ca29643203b521b332eb528b", "layers.1.down_proj.weight": "4527cdd949ff4e5f7061e449219221407a3af51d9c5baa9b42a7c21e144fc5c0"}',NULL,'bab23c0953106a53c16c0',2,'encore-blue','','{"load": 0.0009674130014900584, "forget": 0.00600899799974286, "write": 0.008047537001402816, "verify": 0.001339727001322899, "probe": 0.009150161997240502, "save": 0.025704252999275923}','{"0": 30.825503511680026, "1": 30.3655744105463}',2,'2026-11-21T14:24:51.982535Z');
INSERT INTO "revisions" VALUES('default',3,2,'rollback','candidate','45b85b440f7a7f6494264ab052145c68a59083ca9c2eab22298b8cc67133532f','{"layers.0.down_proj.weight": "08bb6bef72505fa772e5ad31519ffc2269c2fa11fa382f99c6603c021ebfed2e", "layers.1.down_proj.weight": "2cbb184553fe704f9e6c4fbf6400125cf91131089265939b6a0aa23b370dc333"}',1,NULL,3,'encore-blue','a doubt','{}','{"0": 37.576125629381075, "1": 37.145551942490854}',3,'2026-11-21T14:24:52.016928Z');
INSERT INTO "revisions" VALUES('default',4,3,'edit','candidate','398cf61353347faabcc1a5a38201a60ccae96ccbb4ac19222229eded07738d4b','{"layers.0.down_proj.weight": "50d68483579e6184f1e15337250905f3e00a607aef443f10bdcfb4baa7bf7b64", "layers.1.down_proj.weight": "9bb8d1ce497789386e925a55fc3de607ef122776c81975e51dbd7a4dbb565aa4"}',NULL,'beed4bf848455fdcb1891',4,'encore-blue','','{"load": 0.00834175600175513, "forget": 4.80900052934885e-06, "write": 0.00184357599937357, "verify": 0.0002485330005583819, "probe": 0.002250073001050623, "save": 0.031213766000291798}','{"0": 44.48189950052477, "1": 42.83161404534675}',4,'2026-11-21T14:24:52.751611Z');
CREATE TABLE switches (
	name VARCHAR(96) NOT NULL, 
	is_on BOOLEAN NOT NULL, 
	reason TEXT NOT NULL, 
	at VARCHAR(32) NOT NULL, 
	CONSTRAINT pk_switches PRIMARY KEY (name)
);
CREATE TABLE tenures (
	id INTEGER NOT NULL, 
	model VARCHAR(64) NOT NULL, 
	fact_id VARCHAR(32) NOT NULL, 
	correction_id VARCHAR(32) NOT NULL, 
	since INTEGER NOT NULL, 
	until INTEGER, 
	blob VARCHAR(64), 
	"row" INTEGER, 
	CONSTRAINT pk_tenures PRIMARY KEY (id)
);
INSERT INTO "tenures" VALUES(1,'default','ffe7eb15478bb118a9d1d','cfd3924c9cacc10f3ae26',1,2,'6ecc6993b39be59f9e16c21d3869d286dc375c528ca6da82d418b960f11ff10e',0);
INSERT INTO "tenures" VALUES(2,'default','f17024e85f863264c470e','c2b368787d8cad1533368',1,2,'6ecc6993b39be59f9e16c21d3869d286dc375c528ca6da82d418b960f11ff10e',1);
INSERT INTO "tenures" VALUES(3,'default','fe69ce93ab583306cc091','c69ab177b32d0f1e83c2e',1,NULL,'6ecc6993b39be59f9e16c21d3869d286dc375c528ca6da82d418b960f11ff10e',2);
INSERT INTO "tenures" VALUES(4,'default','ffe7eb15478bb118a9d1d','cb067029e3757877d6dc6',2,3,'aa568c4e209347c6a80ffe2083306f4718aaf7dbdc3852df29d365d0257d3c92',0);
INSERT INTO "tenures" VALUES(5,'default','f17024e85f863264c470e','c6c29bdc5d52809f8ddae',2,3,NULL,NULL);
INSERT INTO "tenures" VALUES(6,'default','ffe7eb15478bb118a9d1d','cfd3924c9cacc10f3ae26',3,NULL,'6ecc6993b39be59f9e16c21d3869d286dc375c528ca6da82d418b960f11ff10e',0);
INSERT INTO "tenures" VALUES(7,'default','f17024e85f863264c470e','c2b368787d8cad1533368',3,NULL,'6ecc6993b39be59f9e16c21d3869d286dc375c528ca6da82d418b960f11ff10e',1);
INSERT INTO "tenures" VALUES(8,'default','f11cffa55aa0792b26e71','c3be223fd1177822a1053',4,NULL,'12bf5ed7b405180c621c0ffa6529673a2f39f43818e8917be0ad43a380a70142',0);
CREATE TABLE workers (
	name VARCHAR(128) NOT NULL, 
	model VARCHAR(64) NOT NULL, 
	state VARCHAR(32) NOT NULL, 
	seen_at VARCHAR(32) NOT NULL, 
	device VARCHAR(32) NOT NULL, 
	memory_bytes BIGINT NOT NULL, 
	CONSTRAINT pk_workers PRIMARY KEY (name)
);
INSERT INTO "workers" VALUES('host:1','default','idle','2026-11-21T14:24:52.794546Z','cpu',422768640);
CREATE INDEX ix_batches_state ON batches (state, model);
CREATE INDEX ix_corrections_batch ON corrections (batch_id);
CREATE INDEX ix_corrections_fact_order ON corrections (fact_id, order_key);
CREATE INDEX ix_corrections_model_state ON corrections (model, state, seq);
CREATE INDEX ix_probe_results_revision ON probe_results (model, revision, probe);
CREATE INDEX ix_quarantine_state ON quarantine (state, reason);
CREATE INDEX ix_tenures_correction ON tenures (correction_id);
CREATE INDEX ix_tenures_fact ON tenures (fact_id, since);
CREATE INDEX ix_tenures_open ON tenures (model, until, since);
COMMIT;
