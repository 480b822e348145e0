package payment

import (
	"strconv"
	"strings"
)

// What Stripe takes, from https://docs.stripe.com/currencies. Whether an account may
// charge in a currency depends on its country, and is for Stripe to say.
const currencies = `
	aed afn all amd ang aoa ars aud awg azn bam bbd bdt bgn bhd bif bmd bnd bob brl bsd bwp byn bzd cad cdf chf clp
	cny cop crc cve czk djf dkk dop dzd egp etb eur fjd fkp gbp gel ghs gip gmd gnf gtq gyd hkd hnl htg huf idr ils
	inr isk jmd jod jpy kes kgs khr kmf krw kwd kyd kzt lak lbp lkr lrd lsl mad mdl mga mkd mmk mnt mop mru mur mvr
	mwk mxn myr mzn nad ngn nio nok npr nzd omr pab pen pgk php pkr pln pyg qar ron rsd rub rwf sar sbd scr sek sgd
	shp sle sll sos srd std stn svc szl thb tjs tnd top try ttd twd tzs uah ugx usd uyu uzs ves vnd vuv wst xaf xcd
	xcg xof xpf yer zar zmw`

const (
	// Their smallest unit is the unit itself.
	zeroDecimal = "bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf"

	// Their smallest unit is a thousandth, and Stripe wants the last digit to be 0.
	threeDecimal = "bhd jod kwd omr tnd"

	// They have no fractions any more, but Stripe goes on to count them in hundredths.
	wholeHundreds = "isk ugx"
)

// mostDefault is Stripe's limit of eight digits for what is not a card payment.
const mostDefault = 99_999_999

// mostOf has the currencies with more digits.
var mostOf = map[string]int64{"idr": 999_999_999_999, "cop": 9_999_999_999, "inr": 999_999_999}

func listed(list, currency string) bool {
	return len(currency) == 3 && strings.Contains(" "+strings.Join(strings.Fields(list), " ")+" ", " "+currency+" ")
}

// checkAmount checks an amount and its currency, which is in lower case.
func checkAmount(amount int64, currency string, most int64) error {
	if !listed(currencies, currency) {
		return wrong("currency", "is %.40q: must be the ISO code of a currency that Stripe supports, such as usd", currency)
	}
	step := int64(1)
	switch {
	case listed(threeDecimal, currency):
		step = 10
	case listed(wholeHundreds, currency):
		step = 100
	}
	if most == 0 {
		most = mostDefault
		if m, ok := mostOf[currency]; ok {
			most = m
		}
	}
	switch {
	case amount <= 0:
		return wrong("amount", "is %d: must be greater than zero, in the currency's smallest unit", amount)
	case amount > most:
		return wrong("amount", "is %d: must be at most %d in %s; Stripe.MostAmount changes that", amount, most, currency)
	case amount%step != 0:
		return wrong("amount", "is %d: must be divisible by %d in %s", amount, step, currency)
	}
	return nil
}

// Decimal writes an amount as people do, such as "10.50" for 1050 in usd, for
// reports. Oncemill keeps it with the claim where a guard is given it.
func Decimal(amount int64, currency string) string {
	digits := 2
	switch currency = strings.ToLower(currency); {
	case listed(zeroDecimal, currency):
		digits = 0
	case listed(threeDecimal, currency):
		digits = 3
	}
	text := strconv.FormatInt(amount, 10)
	if digits == 0 {
		return text
	}
	sign := ""
	if amount < 0 {
		sign, text = "-", text[1:]
	}
	if missing := digits + 1 - len(text); missing > 0 {
		text = strings.Repeat("0", missing) + text
	}
	return sign + text[:len(text)-digits] + "." + text[len(text)-digits:]
}
