package store

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// contract is what holds for both databases. Each of these runs by itself on SQLite, and below TestOnPostgres on PostgreSQL.
var contract = map[string]func(*testing.T){
	"TestAdminPages":                   TestAdminPages,
	"TestAuditPagesAreComplete":        TestAuditPagesAreComplete,
	"TestAuditQueries":                 TestAuditQueries,
	"TestAuditRecordsAreBounded":       TestAuditRecordsAreBounded,
	"TestCancelled":                    TestCancelled,
	"TestChangeContainer":              TestChangeContainer,
	"TestChangeUser":                   TestChangeUser,
	"TestChangesAreRecorded":           TestChangesAreRecorded,
	"TestChangesOfAnotherHistory":      TestChangesOfAnotherHistory,
	"TestContainer":                    TestContainer,
	"TestContainerHistory":             TestContainerHistory,
	"TestContainersAt":                 TestContainersAt,
	"TestCopiesAreKept":                TestCopiesAreKept,
	"TestDeleteAndPurge":               TestDeleteAndPurge,
	"TestDeletedKeyLeavesContainers":   TestDeletedKeyLeavesContainers,
	"TestDisabledUser":                 TestDisabledUser,
	"TestEventsAreBounded":             TestEventsAreBounded,
	"TestEventsAreOrderedByNumber":     TestEventsAreOrderedByNumber,
	"TestEventsInCommitOrder":          TestEventsInCommitOrder,
	"TestGatewayAudit":                 TestGatewayAudit,
	"TestGateways":                     TestGateways,
	"TestReplaceGateway":               TestReplaceGateway,
	"TestHTTPSFollowsPort443":          TestHTTPSFollowsPort443,
	"TestHTTPSWhileDeleting":           TestHTTPSWhileDeleting,
	"TestIDsNeverComeBack":             TestIDsNeverComeBack,
	"TestIngressRules":                 TestIngressRules,
	"TestIngressRulesAreBounded":       TestIngressRulesAreBounded,
	"TestKeyAccounts":                  TestKeyAccounts,
	"TestKeys":                         TestKeys,
	"TestKilledWhileWriting":           TestKilledWhileWriting,
	"TestLastAdmin":                    TestLastAdmin,
	"TestLimitWhileDeleting":           TestLimitWhileDeleting,
	"TestLimitsUnderConcurrency":       TestLimitsUnderConcurrency,
	"TestLoweredLimitCounts":           TestLoweredLimitCounts,
	"TestOldAuditRecordsGo":            TestOldAuditRecordsGo,
	"TestOnce":                         TestOnce,
	"TestOnceAtOnce":                   TestOnceAtOnce,
	"TestOpenAtOnce":                   TestOpenAtOnce,
	"TestOwnLimits":                    TestOwnLimits,
	"TestPages":                        TestPages,
	"TestProvision":                    TestProvision,
	"TestProvisionAtOnce":              TestProvisionAtOnce,
	"TestProvisioningIsRecorded":       TestProvisioningIsRecorded,
	"TestPruneTokens":                  TestPruneTokens,
	"TestRefusedChangesAreNotRecorded": TestRefusedChangesAreNotRecorded,
	"TestRevokedToken":                 TestRevokedToken,
	"TestRevokedTokensAreBounded":      TestRevokedTokensAreBounded,
	"TestRulesGoWithTheirContainer":    TestRulesGoWithTheirContainer,
	"TestSchemaRefuses":                TestSchemaRefuses,
	"TestSetDesired":                   TestSetDesired,
	"TestSetMountPaths":                TestSetMountPaths,
	"TestSetMountPathsOfOthers":        TestSetMountPathsOfOthers,
	"TestSetSSH":                       TestSetSSH,
	"TestSetStatusSkipsNothing":        TestSetStatusSkipsNothing,
	"TestSlowCommitters":               TestSlowCommitters,
	"TestSlotsInTurn":                  TestSlotsInTurn,
	"TestSlotsRest":                    TestSlotsRest,
	"TestSlotsWithClockSetBack":        TestSlotsWithClockSetBack,
	"TestStoreAgainstModel":            TestStoreAgainstModel,
	"TestTokenLimit":                   TestTokenLimit,
	"TestTokens":                       TestTokens,
	"TestTooManyAuditRecords":          TestTooManyAuditRecords,
	"TestUserWithKeys":                 TestUserWithKeys,
	"TestUsers":                        TestUsers,
}

// ofOne are the tests of what only one of the databases has, or none.
var ofOne = map[string]bool{
	"TestBackupRefusals":         true,
	"TestBackupWhileOthersWrite": true,
	"TestBusy":                   true,
	"TestDamagedWhileOpen":       true,
	"TestDatabaseOfSchema1":      true,
	"TestDatabasesOfEverySchema": true,
	"TestDiskBroken":             true,
	"TestDiskFull":               true,
	"TestDumpsAreThere":          true,
	"TestFilesAreTheOwnersAlone": true,
	"TestIndexesServe":           true,
	"TestMapError":               true,
	"TestOldCopyRestored":        true,
	"TestOnCommit":               true,
	"TestOpenReadOnly":           true,
	"TestPragmas":                true,
	"TestRefusedFiles":           true,
	"TestRenewBeginsAnEpoch":     true,
	"TestReopen":                 true,
	"TestSchemaIsTheGoldenOne":   true,
	"TestSettle":                 true,
	"TestWaterLevel":             true,
}

func TestOnPostgres(t *testing.T) {
	for name, test := range contract {
		t.Run(name, test)
	}
}

// No test is forgotten: it is of the contract, or of one database.
func TestContractIsComplete(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	for _, file := range files {
		if file == "postgres_test.go" || file == "copy_test.go" || file == "lease_test.go" || file == "contract_test.go" {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range declared.FindAllStringSubmatch(string(text), -1) {
			if name := match[1]; (contract[name] != nil) == ofOne[name] {
				t.Errorf("%s: %s is to be in one of contract and ofOne", file, name)
			}
		}
	}
}
