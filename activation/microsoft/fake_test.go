package microsoft_test

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/partnertest"
)

// The fake refuses, or notes, every mistake that it is there to find.
func TestTheFakeFindsMistakes(t *testing.T) {
	t.Parallel()
	const form = "client_id=client-1&grant_type=refresh_token&scope=https%3A%2F%2Fads.microsoft.com%2Fmsads.manage+offline_access&refresh_token="
	ada := activation.Person{
		ID: partnertest.Profile(1), Identifiers: []activation.Identifier{{Kind: "user_id", Value: "cust-1"}},
		Traits: map[string]jsontext.Value{"email": jsontext.Value(`"Ada.L+1@Example.com"`), "phone": jsontext.Value(`"+14155550100"`)},
	}
	email, phone := partnertest.Hex("ada.l+1@example.com"), partnertest.Hex("+14155550100")
	body := func(kind, items string) string {
		return fmt.Sprintf(`{"CustomerListUserData":{"AudienceId":"814123456","ActionType":"Add","CustomerListItemSubType":%q,"CustomerListItems":[%s]}}`, kind, items)
	}
	one := body("Email", `"`+email+`"`)
	byPhone, byCRM := partnertest.MicrosoftOptions{Identifier: "phone"}, partnertest.MicrosoftOptions{Identifier: "crm"}
	for name, tt := range map[string]struct {
		method, path, body string
		header             map[string]string // besides the usual; "" leaves one out
		options            partnertest.MicrosoftOptions
		status             int
		answer, violation  string // parts of them; no violation for none
		member             bool
	}{
		"nothing":                  {body: one, answer: `"PartialErrors":[]`, member: true},
		"a phone number":           {options: byPhone, body: body("Phone", `"`+phone+`"`), member: true},
		"an own id":                {options: byCRM, body: body("CRM", `"cust-1"`), member: true},
		"the terms":                {options: partnertest.MicrosoftOptions{TermsOpen: true}, body: strings.Replace(one, "]}", `],"AcceptCustomerMatchTerm":true}`, 1), member: true},
		"terms that are refused":   {body: strings.Replace(one, "]}", `],"AcceptCustomerMatchTerm":false}`, 1), status: 400, answer: "8003"},
		"terms nobody accepted":    {options: partnertest.MicrosoftOptions{TermsOpen: true}, body: one, status: 400, answer: "8003"},
		"no token":                 {body: one, header: map[string]string{"Authorization": ""}, status: 401, answer: "105", violation: "Authorization"},
		"an old token":             {body: one, header: map[string]string{"Authorization": "Bearer old"}, status: 401, answer: "109"},
		"no developer token":       {body: one, header: map[string]string{"DeveloperToken": ""}, status: 401, answer: "105", violation: "DeveloperToken"},
		"no customer":              {body: one, header: map[string]string{"CustomerId": ""}, status: 400, answer: "106", violation: "not both there"},
		"no account":               {body: one, header: map[string]string{"CustomerAccountId": ""}, status: 400, answer: "106", violation: "not both there"},
		"swapped":                  {body: one, header: map[string]string{"CustomerId": "2222", "CustomerAccountId": "1111"}, status: 400, answer: "106", violation: "swapped"},
		"another account":          {body: one, header: map[string]string{"CustomerAccountId": "3333"}, status: 400, answer: "106"},
		"a wrong content type":     {body: one, header: map[string]string{"Content-Type": "text/plain"}, status: 400, violation: "application/json"},
		"an unknown path":          {path: "/CustomerListUserData", body: one, status: 404, violation: "is not known"},
		"a wrong method":           {method: http.MethodPut, body: one, status: 404, violation: "is not known"},
		"no JSON":                  {body: "x", status: 400, violation: "cannot be read"},
		"an unknown member":        {body: strings.Replace(one, `"ActionType"`, `"X":1,"ActionType"`, 1), status: 400, violation: "cannot be read"},
		"a member twice":           {body: strings.Replace(one, `"ActionType"`, `"ActionType":"Add","ActionType"`, 1), status: 400, violation: "cannot be read"},
		"a number for a list":      {body: strings.Replace(one, `"814123456"`, `9007199254740993`, 1), status: 400, violation: "cannot be read"},
		"an unknown action":        {body: strings.Replace(one, `"Add"`, `"Replace"`, 1), status: 400, violation: "ActionType"},
		"another kind":             {body: body("Phone", `"`+phone+`"`), status: 400, violation: "CustomerListItemSubType"},
		"no items":                 {body: body("Email", ""), status: 400, violation: "no items"},
		"too many items":           {options: partnertest.MicrosoftOptions{MaxItems: 1}, body: body("Email", `"`+email+`","`+email+`"`), status: 400, answer: "BatchSizeExceeded", violation: "2 items"},
		"a list that is not there": {body: strings.Replace(one, "814123456", "815", 1), status: 400, answer: "InvalidAudienceId"},
		"an address as it is":      {body: body("Email", `"ada.l+1@example.com"`), answer: `"Index":0`, violation: "e-mail address"},
		"a hash in capitals":       {body: body("Email", `"`+strings.ToUpper(email)+`"`), answer: `"Index":0`, violation: "no such hash"},
		"an own id that is hashed": {options: byCRM, body: body("CRM", `"`+partnertest.Hex("cust-1")+`"`), answer: `"Index":0`, violation: "is hashed"},
		"an own id of nobody":      {options: byCRM, body: body("CRM", `"cust-2"`), violation: "is not right for anybody"},
		"no dots":                  {body: body("Email", `"`+partnertest.Hex("adal+1@example.com")+`"`), violation: "lacks its dots"},
		"no tag":                   {body: body("Email", `"`+partnertest.Hex("ada.l@example.com")+`"`), violation: "lacks its tag"},
		"capitals in an address":   {body: body("Email", `"`+partnertest.Hex("Ada.L+1@Example.com")+`"`), violation: "has capital letters in it"},
		"hashed twice":             {body: body("Email", `"`+partnertest.Hex(email)+`"`), violation: "is hashed twice"},
		"the hash of null":         {body: body("Email", `"`+partnertest.Hex("null")+`"`), violation: "is the hash of null"},
		"a number without plus":    {options: byPhone, body: body("Phone", `"`+partnertest.Hex("14155550100")+`"`), violation: "lacks its plus sign"},
		"a number with plus":       {options: partnertest.MicrosoftOptions{Identifier: "phone", PhoneFormat: "digits"}, body: body("Phone", `"`+phone+`"`), violation: "has a plus sign"},
		"another kind of audience": {path: "/Audiences", body: `{"Audiences":[{"Name":"x","Type":"RemarketingList"}]}`, status: 400, violation: "Type"},
		"a list without a name":    {path: "/Audiences", body: `{"Audiences":[{"Type":"CustomerList"}]}`, status: 400, violation: "0 characters"},
		"two lists":                {path: "/Audiences", body: `{"Audiences":[{"Name":"x","Type":"CustomerList"},{"Name":"y","Type":"CustomerList"}]}`, status: 400, violation: "one list"},
		"a second list of a name":  {path: "/Audiences", body: `{"Audiences":[{"Name":"ours","Type":"CustomerList"}]}`, violation: "a second list"},
		"a query for no type":      {path: "/Audiences/QueryByIds", body: `{}`, status: 400, violation: "Type"},
		"a query with a number":    {path: "/Audiences/QueryByIds", body: `{"AudienceIds":[814123456],"Type":"CustomerList"}`, status: 400, violation: "cannot be read"},
		"an old refresh token":     {path: "token", body: form + "refresh-token-9", status: 400, answer: "invalid_grant", violation: "was replaced"},
		"a refresh without scope":  {path: "token", body: strings.Replace(form, "scope", "scopes", 1), status: 400, answer: "invalid_request", violation: "scope"},
		"a refresh in JSON":        {path: "token", body: `{}`, header: map[string]string{"Content-Type": "application/json"}, status: 400, answer: "invalid_request", violation: "no form"},
		"a refresh":                {path: "token", body: form + "refresh-token-0", answer: "refresh-token-1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, f := start(t, tt.options)
			f.Seed(ada)
			f.List("ours")
			header := map[string]string{
				"Authorization": "Bearer access-token-0", "DeveloperToken": "ABC123DEF456", "CustomerId": "1111", "CustomerAccountId": "2222",
				"Content-Type": "application/json",
			}
			at := f.URL + "/CustomerListUserData/Apply"
			switch tt.path {
			case "":
			case "token":
				at, header = f.TokenURL, map[string]string{"Content-Type": "application/x-www-form-urlencoded"}
			default:
				at = f.URL + tt.path
			}
			maps.Copy(header, tt.header)
			if tt.method == "" {
				tt.method = http.MethodPost
			}
			answer, status := partnertest.Ask(t, tt.method, at, tt.body, header)
			if status != max(tt.status, 200) || !strings.Contains(answer, tt.answer) {
				t.Errorf("the answer is %d %s, want %d with %s", status, answer, max(tt.status, 200), tt.answer)
			}
			noted := strings.Join(f.Violations(), "\n")
			if (noted == "") != (tt.violation == "") || !strings.Contains(noted, tt.violation) {
				t.Errorf("noted is %q, want %q", noted, tt.violation)
			}
			if got := len(f.Members(partnertest.Audience{ID: "814123456"})) > 0; got != tt.member {
				t.Errorf("somebody is on the list: %v, want %v", got, tt.member)
			}
		})
	}
}

// Who was taken is not to be sent again because somebody else was refused; and of two who refresh at once with the same
// token, the second fails.
func TestTheFakeRemembers(t *testing.T) {
	t.Parallel()
	p, f := start(t, partnertest.MicrosoftOptions{})
	f.List("ours")
	f.Seed(partnertest.Somebody(1), partnertest.Somebody(2))
	f.Refuse(partnertest.Profile(2), true)
	m := activation.Message{Body: fmt.Appendf(nil, `{"counts":[1,1],"body":{"CustomerListUserData":{"AudienceId":"814123456","ActionType":"Add",`+
		`"CustomerListItemSubType":"Email","CustomerListItems":[%q,%q]}}}`,
		partnertest.Hex("person.1@example.com"), partnertest.Hex("person.2@example.com"))}
	if o := p.Send(t.Context(), at(f), m); o.Class != activation.Partial || len(f.Violations()) > 0 {
		t.Errorf("Send = %+v; noted is %q", o, f.Violations())
	}
	if p.Send(t.Context(), at(f), m); len(f.Violations()) != 1 || !strings.Contains(f.Violations()[0], "sent again") {
		t.Errorf("noted is %q", f.Violations())
	}
	to := at(f)
	_, _, first := p.Refresh(t.Context(), to)
	_, _, second := p.Refresh(t.Context(), to)
	if first.Class != activation.OK || second.Class != activation.Reauth || len(f.Violations()) != 2 {
		t.Errorf("Refresh twice = %+v, then %+v; noted is %q", first, second, f.Violations())
	}
}
