// Package files brings rows of files in as events: of files that somebody uploads, of an operator's folder, and of a
// bucket; once, or each file as it arrives.
//
//	a file ─► unpack ─► rows ─► mapping ─► events ─► collector.Intake
//	            where a row is, its      │
//	            messageId follows from   └─► rejected, with the reason
//
// A row that is damaged, or that the mapping or the intake refuses, does not concern the others. How far a file is
// imported is saved after each batch that is durable: whoever goes on after a crash repeats less than one batch, whose
// events the lanes recognize by their messageIds.
package files
